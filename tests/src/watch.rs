//! Looking at a job many times a second, over one connection.

use fedtune_proto::channel::Credentials;
use fedtune_proto::v1::operator_client::OperatorClient;
use fedtune_proto::v1::{ShowJobRequest, ShowJobResponse};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::Federation;

/// The operator's eye on one job; it finds an aggregator that was restarted again.
#[derive(Debug)]
pub struct Watch {
    runtime: Runtime,
    client: OperatorClient<Channel>,
    job: String,
}

impl Watch {
    /// Connects.
    ///
    /// # Errors
    /// The aggregator is away.
    pub fn new(federation: &Federation, job: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let credentials = Credentials::read(&federation.path("federation/operator"), "operator")?;
        let channel = runtime.block_on(credentials.connect(federation.address()))?;
        Ok(Self { runtime, client: OperatorClient::new(channel), job: job.into() })
    }

    /// What `job show` shows; `None` while the aggregator is away.
    pub fn look(&self) -> Option<ShowJobResponse> {
        let mut client = self.client.clone();
        let request = ShowJobRequest { job: self.job.clone() };
        let shown = self.runtime.block_on(client.show_job(request));
        shown.ok().map(tonic::Response::into_inner)
    }
}
