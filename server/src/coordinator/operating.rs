//! What operators ask of jobs.

use std::collections::BTreeSet;

use super::Coordinator;
use super::handle::Rejected;
use super::snapshot::{JobSnapshot, Overview};
use crate::pki::Role;
use crate::round::{Event, World};
use crate::store::StoreError;
use crate::store::records::{JobRecord, JobStatus};

impl Coordinator {
    /// Tells a job that runs; `false` where it does not.
    async fn told(&mut self, job: &str, event: Event) -> Result<bool, StoreError> {
        let runs = self.active.contains_key(job);
        if runs {
            self.apply(job, event).await?;
            self.pass_on().await;
        }
        Ok(runs)
    }

    pub(super) async fn pause(&mut self, job: &str) -> Result<(), Rejected> {
        if self.told(job, Event::Pause).await? {
            return Ok(());
        }
        let mut record = self.find(job).await?;
        match record.status {
            JobStatus::Paused => Ok(()),
            JobStatus::Queued => {
                (record.machine, _) = record.machine.step(Event::Pause, &World::default());
                record.status = JobStatus::Paused;
                record.reason = record.machine.paused.clone().unwrap_or_default();
                self.records.save(&record, &[]).await?;
                self.changed();
                Ok(())
            }
            status => Err(Rejected::Refused(format!("job {} is {} already", record.id, status.as_str()))),
        }
    }

    pub(super) async fn resume(&mut self, job: &str) -> Result<(), Rejected> {
        if self.told(job, Event::Resume).await? {
            return Ok(());
        }
        let mut record = self.find(job).await?;
        if record.status != JobStatus::Paused {
            let status = record.status.as_str();
            return Err(Rejected::Refused(format!("job {} is {status}; only a paused one can be resumed", record.id)));
        }
        record.machine.paused = None;
        record.status = JobStatus::Queued;
        record.reason = String::new();
        self.records.save(&record, &[]).await?;
        self.next_jobs().await?;
        self.changed();
        Ok(())
    }

    pub(super) async fn cancel(&mut self, job: &str) -> Result<(), Rejected> {
        if self.told(job, Event::Cancel).await? {
            return Ok(());
        }
        let mut record = self.find(job).await?;
        if record.status.is_over() {
            return Err(Rejected::Refused(format!("job {} is {} already", record.id, record.status.as_str())));
        }
        record.status = JobStatus::Cancelled;
        record.reason = "cancelled while it waited".into();
        self.records.save(&record, &[]).await?;
        self.changed();
        Ok(())
    }

    pub(super) async fn find(&self, job: &str) -> Result<JobRecord, Rejected> {
        let jobs = self.records.jobs().await?;
        jobs.into_iter().find(|record| record.id == job).ok_or_else(|| Rejected::Unknown(job.to_owned()))
    }

    pub(super) async fn show(&self, job: &str) -> Result<JobSnapshot, Rejected> {
        let active = self.active.get(job);
        let record = match active {
            Some(active) => active.record.clone(),
            None => self.find(job).await?,
        };
        let rounds = self.records.rounds(&record.id).await?;
        let activity = active.map(|active| active.activity.clone()).unwrap_or_default();
        Ok(JobSnapshot::new(record, rounds, activity))
    }

    pub(super) fn overview(&self) -> Overview {
        let online: BTreeSet<String> =
            [Role::Site, Role::Evaluator].into_iter().flat_map(|role| self.sessions.online(role)).collect();
        let working = online.iter().filter(|site| self.work_of(site).is_some()).cloned().collect();
        Overview { working, online }
    }
}
