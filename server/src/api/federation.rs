//! A site's life, on the wire.

use std::pin::Pin;

use fedtune_proto::delta::Codec;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::{Evaluation, Form};
use fedtune_proto::recipe::ExportRecipe;
use fedtune_proto::v1::federation_server::Federation;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, Directive};
use fedtune_proto::version;
use futures::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::limits::SiteLimits;
use super::{identity, wire};
use crate::aggregate::{Bounds, Rejection, check_state, check_update, decode};
use crate::claims::Claims;
use crate::coordinator::{self, About, Expected, Handle, steady_ms};
use crate::metrics::{Metrics, Verdict};
use crate::pki::Role;
use crate::round::{Event, Fault, SiteShare, Turn, Work};
use crate::store::Artifacts;
use crate::traces::Lasting;

const SITES: &[Role] = &[Role::Site, Role::Evaluator];

/// Longest texts a site may send, in bytes.
const TEXT_MAX: usize = 4096;
/// Most results checked at once.
const CHECKS_MAX: usize = 2;

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    coordinator: Handle,
    artifacts: Artifacts,
    metrics: Metrics,
    limits: SiteLimits,
    /// Checks running at once, so that their memory is bounded.
    checks: Semaphore,
    /// Sites of which a result is being checked, or waits for that.
    reporting: Claims,
}

impl Service {
    pub(super) fn new(coordinator: Handle, artifacts: Artifacts, metrics: Metrics, limits: SiteLimits) -> Self {
        Self {
            coordinator,
            artifacts,
            metrics,
            limits,
            checks: Semaphore::new(CHECKS_MAX),
            reporting: Claims::default(),
        }
    }

    /// An artifact that a site says it has uploaded; the reason if it is not here.
    async fn uploaded(&self, wire: Option<&v1::Artifact>) -> Result<Result<ArtifactRef, String>, Status> {
        let artifact = wire::artifact(wire)?;
        let size = self.artifacts.refresh(artifact.digest).await.map_err(wire::storage)?;
        Ok(match size {
            Some(size) if size == artifact.size => Ok(artifact),
            Some(size) => Err(format!("artifact {} has {size} bytes, not {}", artifact.digest, artifact.size)),
            None => Err(format!("artifact {} was not uploaded", artifact.digest)),
        })
    }

    /// Checks that a model can be written by this recipe out of a state.
    async fn check_recipe(&self, text: &str, state: ArtifactRef) -> Result<(), Rejection> {
        let layout = self.artifacts.layout(state).await?;
        ExportRecipe::checked(text, &layout).map(drop).map_err(Rejection::Unfit)
    }

    /// Checks a result; what is wrong with it becomes an [`Event::Failed`]. The verdict is what is to be counted if the
    /// event is still waited for.
    async fn event(
        &self,
        site: &str,
        turn: Turn,
        expected: (Option<ArtifactRef>, Form, Bounds, Option<Codec>),
        request: v1::ReportResultRequest,
    ) -> Result<(Event, Option<String>, Verdict), Status> {
        let (state, form, bounds, codec) = expected;
        let site = site.to_owned();
        let quarantine = |site: String, reason: String, verdict| {
            let reason = clipped(reason);
            (Event::Failed { site, turn, reason, fault: Fault::Quarantined }, None, verdict)
        };
        let outcome = request.outcome.ok_or_else(|| Status::invalid_argument("the outcome is missing"))?;
        let _turn = self.checks.acquire().await.map_err(wire::gone)?;
        Ok(match (outcome, turn.work, state) {
            (Outcome::Failed(failed), ..) => {
                let reason = clipped(failed.reason);
                let (fault, verdict) = match failed.refused {
                    true => (Fault::Refused, Verdict::Refused),
                    false => (Fault::Failed, Verdict::Failed),
                };
                (Event::Failed { site, turn, reason, fault }, None, verdict)
            }
            (Outcome::Initialized(initialized), Work::Initialize, _) => {
                let state = match self.uploaded(initialized.state.as_ref()).await? {
                    Ok(state) => state,
                    Err(reason) => return Ok(quarantine(site, reason, Verdict::Missing)),
                };
                let recipe = initialized.recipe_json;
                let checked = match check_state(&self.artifacts, state).await {
                    Ok(()) => self.check_recipe(&recipe, state).await,
                    unfit => unfit,
                };
                match checked {
                    Ok(()) => (Event::Initialized { site, turn, state }, Some(recipe), Verdict::Accepted),
                    Err(Rejection::Unfit(reason)) => quarantine(site, reason, Verdict::Unfit),
                    Err(Rejection::Store(e)) => return Err(wire::storage(e)),
                }
            }
            (Outcome::Trained(trained), Work::Train, Some(state)) => {
                let uploaded = match self.uploaded(trained.update.as_ref()).await? {
                    Ok(uploaded) => uploaded,
                    Err(reason) => return Ok(quarantine(site, reason, Verdict::Missing)),
                };
                let figures = [trained.train_loss, trained.train_seconds, trained.relative_error];
                if !figures.iter().all(|figure| figure.is_finite()) {
                    let reason = format!("of training loss, seconds and relative error, {figures:?}, one is no number");
                    return Ok(quarantine(site, reason, Verdict::NotFinite));
                }
                let (update, sent) = match codec {
                    None => (uploaded, None),
                    Some(codec) => {
                        let staging = format!("{site}.decoded");
                        match decode(&self.artifacts, state, uploaded, codec, &staging).await {
                            Ok(update) => (update, Some(uploaded)),
                            Err(Rejection::Unfit(reason)) => return Ok(quarantine(site, reason, Verdict::Unfit)),
                            Err(Rejection::Store(e)) => return Err(wire::storage(e)),
                        }
                    }
                };
                match check_update(&self.artifacts, state, update, trained.examples, &bounds).await {
                    Ok(norm) => {
                        let share = SiteShare {
                            update,
                            examples: trained.examples,
                            norm,
                            sent,
                            stale: None,
                            relative_error: trained.relative_error,
                            received_ms: steady_ms(),
                            train_loss: trained.train_loss,
                            train_seconds: trained.train_seconds,
                            bytes_up: request.bytes_up,
                            bytes_down: request.bytes_down,
                        };
                        (Event::Updated { site, turn, share }, None, Verdict::Accepted)
                    }
                    Err(Rejection::Unfit(reason)) => quarantine(site, reason, Verdict::Unfit),
                    Err(Rejection::Store(e)) => return Err(wire::storage(e)),
                }
            }
            (Outcome::Evaluated(evaluated), Work::Evaluate, _) => {
                match Evaluation::checked(evaluated.evaluation.unwrap_or_default(), form, bounds.examples) {
                    Ok(sums) => (Event::Evaluated { site, turn, sums }, None, Verdict::Accepted),
                    Err(reason) => quarantine(site, reason, Verdict::Unfit),
                }
            }
            _ => return Err(Status::invalid_argument("the outcome does not fit the task's kind")),
        })
    }
}

/// A text of a site, fit for a terminal and a log: no control characters, of bounded length.
fn clipped(text: String) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[tonic::async_trait]
impl Federation for Service {
    type OpenSessionStream = Pin<Box<dyn Stream<Item = Result<Directive, Status>> + Send>>;

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let identity = identity::require(&request, SITES)?;
        let place = self.limits.stream(&identity)?;
        let v1::OpenSessionRequest { protocol, program, capabilities } = request.into_inner();
        let program = clipped(program);
        version::check(&program, protocol).map_err(|e| Status::failed_precondition(e.to_string()))?;
        let capabilities = capabilities.unwrap_or_default();
        let about = About {
            program,
            device: clipped(capabilities.device),
            memory_bytes: capabilities.memory_bytes,
            label_counts: capabilities.label_counts.into_iter().map(|c| (clipped(c.label), c.examples)).collect(),
        };
        let (site, role) = (identity.name.clone(), identity.role.to_string());
        let opened = self.coordinator.open_session(identity, about).await.map_err(wire::gone)?;
        let opened = opened.map_err(wire::rejected)?;
        let welcome = v1::Welcome {
            protocol: Some(version::PROTOCOL),
            program: crate::PROGRAM.into(),
            session: opened.session,
            site,
            role,
            heartbeat_millis: opened.heartbeat_millis,
        };
        let welcome = Directive { kind: Some(v1::directive::Kind::Welcome(welcome)) };
        // The span of the call is that of the session. Nothing follows a close.
        let open = (opened.directives, (place, Lasting::current()));
        let directives = stream::unfold(Some(open), |open| async {
            let (mut receiver, place) = open?;
            let directive = receiver.recv().await?;
            let closes = matches!(directive, coordinator::Directive::Close { .. });
            Some((wire::directive(directive), (!closes).then_some((receiver, place))))
        });
        Ok(Response::new(Box::pin(stream::once(async { welcome }).chain(directives).map(Ok))))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let identity = identity::require(&request, SITES)?;
        let session = request.into_inner().session;
        let known = self.coordinator.heartbeat(identity.name, session).await.map_err(wire::gone)?;
        if known { Ok(Response::new(v1::HeartbeatResponse {})) } else { Err(unknown_session()) }
    }

    async fn report_progress(
        &self,
        request: Request<v1::ReportProgressRequest>,
    ) -> Result<Response<v1::ReportProgressResponse>, Status> {
        let identity = identity::require(&request, SITES)?;
        let request = request.into_inner();
        let (job, turn) = wire::turn(request.task.clone())?;
        let activity = wire::activity(turn, &request);
        let progress = self.coordinator.progress(identity.name, request.session, job, turn, activity);
        let known = progress.await.map_err(wire::gone)?;
        if known { Ok(Response::new(v1::ReportProgressResponse {})) } else { Err(unknown_session()) }
    }

    async fn report_result(
        &self,
        request: Request<v1::ReportResultRequest>,
    ) -> Result<Response<v1::ReportResultResponse>, Status> {
        let site = identity::require(&request, SITES)?.name;
        let request = request.into_inner();
        let (job, turn) = wire::turn(request.task.clone())?;
        // One at a time, so that no site fills the checks.
        let busy = || Status::aborted("a result of this site is being checked; report again in a moment");
        let _alone = self.reporting.take(&site).ok_or_else(busy)?;
        let expected = self.coordinator.expect(site.clone(), job.clone(), turn).await.map_err(wire::gone)?;
        let answer = match expected.map_err(wire::storage)? {
            Expected::Answered(answer) => {
                // One that was accepted before has been counted.
                if !answer.accepted {
                    self.metrics.result(turn.work, Verdict::Late);
                }
                answer
            }
            Expected::Open { state, form, bounds, codec } => {
                let expected = (state, form, bounds, codec);
                let (event, recipe, verdict) = self.event(&site, turn, expected, request).await?;
                let report = self.coordinator.report(site, job, turn, event, recipe);
                let answer = report.await.map_err(wire::gone)?.map_err(wire::storage)?;
                let verdict = match verdict {
                    Verdict::Accepted if answer.replayed => Verdict::Replayed,
                    Verdict::Accepted if !answer.accepted => Verdict::Late,
                    found => found,
                };
                self.metrics.result(turn.work, verdict);
                answer
            }
        };
        Ok(Response::new(v1::ReportResultResponse { accepted: answer.accepted, reason: answer.reason }))
    }
}

fn unknown_session() -> Status {
    Status::unauthenticated(
        "this session is not open (the aggregator restarted, or a newer one took over); connect again",
    )
}
