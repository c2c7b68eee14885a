//! Jobs, rounds and sites in SQLite. A transition of a job is one transaction.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use fedtune_proto::digest::{ArtifactRef, Digest};
use serde::{Deserialize, Serialize};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, Row, SqlSafeStr};

use super::StoreError;
use crate::pki::{Identity, Role};
use crate::round::{Machine, RoundRecord};

/// The schema's history, oldest first. What has been released is never changed.
const MIGRATIONS: &[(&str, &str)] = &[
    ("first", include_str!("migrations/0001_first.sql")),
    ("probe", include_str!("migrations/0002_probe.sql")),
    ("ended", include_str!("migrations/0003_ended.sql")),
];

/// A file of a base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFile {
    /// File name without a path.
    pub name: String,
    /// Its bytes.
    pub artifact: ArtifactRef,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// Waits for the jobs before it.
    Queued,
    /// The round machine runs.
    Running,
    /// Waits for the operator.
    Paused,
    /// Ended well.
    Completed,
    /// Ended badly.
    Failed,
    /// Ended by the operator.
    Cancelled,
}

impl JobStatus {
    const ALL: [Self; 6] = [Self::Queued, Self::Running, Self::Paused, Self::Completed, Self::Failed, Self::Cancelled];

    /// The word in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl FromStr for JobStatus {
    type Err = serde_json::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|status| status.as_str() == text);
        known.ok_or_else(|| serde::de::Error::custom(format!("unknown status {text:?}")))
    }
}

/// A job as it is stored.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its canonical text.
    pub text: String,
    /// Its base model.
    pub base_model: Vec<BaseFile>,
    /// When it came, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// Where it stands.
    pub status: JobStatus,
    /// Why it ended as it did.
    pub reason: String,
    /// Its round machine.
    pub machine: Machine,
    /// How its models are written; known once the first state is.
    pub recipe: Option<String>,
}

impl JobRecord {
    /// Whether a site needs this artifact for what it has to do, or may come to have.
    pub fn gives(&self, site: &str, digest: Digest) -> bool {
        let machine = &self.machine;
        let states = machine.state.into_iter().chain(machine.state_for(site));
        let states = states.chain(machine.difference.map(|difference| difference.artifact));
        let of_base = self.base_model.iter().map(|file| file.artifact);
        of_base.chain(states).any(|artifact| artifact.digest == digest)
    }
}

/// The artifacts of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobArtifacts {
    /// When it was first seen to have ended, in milliseconds since 1970; `None` while it has not.
    pub ended_ms: Option<u64>,
    /// All that its records name.
    pub named: BTreeSet<Digest>,
    /// What its models are exported of: the base model, the last state and the best.
    pub exported: BTreeSet<Digest>,
}

/// The records.
#[derive(Debug, Clone)]
pub struct Records {
    pub(super) pool: SqlitePool,
}

impl Records {
    /// Opens or makes the database at `path` and brings its schema up to date, whichever program of ours wrote it.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is one that this program does not know.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        // One writer, so that transactions queue here and not inside SQLite.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            // After a COMMIT that failed sqlx goes on inside a transaction that nothing ends, and calls that stored.
            .after_release(|connection, _| {
                let sound = !connection.is_in_transaction();
                Box::pin(async move { Ok(sound) })
            })
            .connect_with(options)
            .await?;
        let migrations = MIGRATIONS.iter().zip(1..).map(|((name, sql), version)| {
            Migration::new(version, (*name).into(), MigrationType::Simple, (*sql).into_sql_str(), false)
        });
        let path = || path.to_path_buf();
        Migrator::with_migrations(migrations.collect()).run(&pool).await.map_err(|e| match e {
            MigrateError::VersionMissing(found) => {
                StoreError::NewerSchema { path: path(), found, known: MIGRATIONS.len() }
            }
            MigrateError::VersionMismatch(version) => StoreError::OtherSchema { path: path(), version },
            source => StoreError::Migration { path: path(), source },
        })?;
        Ok(Self { pool })
    }

    /// Writes something that means nothing, in a transaction that is synced like any other.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn probe(&self, now_ms: u64) -> Result<(), StoreError> {
        let probe = sqlx::query("UPDATE probe SET checked_ms = $1 WHERE id = 1").bind(now_ms.cast_signed());
        let done = probe.execute(&self.pool).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound.into()) }
    }

    /// Enrols a site or evaluator. False if one of this name is enrolled already.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn add_site(&self, identity: &Identity, now_ms: u64) -> Result<bool, StoreError> {
        let done = sqlx::query("INSERT INTO sites (name, role, added_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(&identity.name)
            .bind(identity.role.as_str())
            .bind(now_ms.cast_signed())
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Every enrolled site and evaluator, by name.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn sites(&self) -> Result<Vec<Identity>, StoreError> {
        let rows = sqlx::query("SELECT name, role FROM sites ORDER BY name").fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                let role: String = row.try_get("role")?;
                let role: Role = role.parse().map_err(|reason: String| StoreError::Record {
                    what: "a site".into(),
                    source: serde::de::Error::custom(reason),
                })?;
                Ok(Identity { role, name: row.try_get("name")? })
            })
            .collect()
    }

    /// Stores a new job.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn add_job(&self, job: &JobRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO jobs (id, name, text, base_model, submitted_ms, status, reason, machine, recipe) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(&job.id)
        .bind(&job.name)
        .bind(&job.text)
        .bind(json("the base model", &job.base_model)?)
        .bind(job.submitted_ms.cast_signed())
        .bind(job.status.as_str())
        .bind(&job.reason)
        .bind(json("the round machine", &job.machine)?)
        .bind(&job.recipe)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Stores a transition of a job, and the rounds it changed, in one transaction.
    ///
    /// # Errors
    /// Storage failed, and nothing of the transition is stored.
    pub async fn save(&self, job: &JobRecord, rounds: &[RoundRecord]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let stored = sqlx::query("UPDATE jobs SET status = $1, reason = $2, machine = $3, recipe = $4 WHERE id = $5")
            .bind(job.status.as_str())
            .bind(&job.reason)
            .bind(json("the round machine", &job.machine)?)
            .bind(&job.recipe)
            .bind(&job.id)
            .execute(&mut *transaction)
            .await?;
        if stored.rows_affected() != 1 {
            return Err(sqlx::Error::RowNotFound.into());
        }
        for round in rounds {
            sqlx::query(
                "INSERT INTO rounds (job, round, record) VALUES ($1, $2, $3) \
                 ON CONFLICT (job, round) DO UPDATE SET record = excluded.record",
            )
            .bind(&job.id)
            .bind(i64::from(round.round))
            .bind(json("a round", round)?)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Every job, oldest first.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM jobs ORDER BY submitted_ms, id").fetch_all(&self.pool).await?;
        rows.iter().map(job_of_row).collect()
    }

    /// How many jobs stand where; every status is there.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn job_counts(&self) -> Result<Vec<(JobStatus, u64)>, StoreError> {
        let rows =
            sqlx::query("SELECT status, COUNT(*) AS jobs FROM jobs GROUP BY status").fetch_all(&self.pool).await?;
        let mut counts: Vec<_> = JobStatus::ALL.into_iter().map(|status| (status, 0)).collect();
        for row in &rows {
            let (status, jobs): (String, i64) = (row.try_get("status")?, row.try_get("jobs")?);
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| known.as_str() == status) {
                *count = jobs.cast_unsigned();
            }
        }
        Ok(counts)
    }

    /// When the oldest job that has not ended came, in milliseconds since 1970; `None` if all have.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn oldest_open_ms(&self) -> Result<Option<u64>, StoreError> {
        let rows = sqlx::query("SELECT status, MIN(submitted_ms) AS oldest FROM jobs GROUP BY status");
        let mut oldest: Option<u64> = None;
        for row in &rows.fetch_all(&self.pool).await? {
            let (status, submitted): (String, i64) = (row.try_get("status")?, row.try_get("oldest")?);
            // A status of a newer program may be one that goes on.
            if !status.parse().is_ok_and(JobStatus::is_over) {
                let submitted = submitted.cast_unsigned();
                oldest = Some(oldest.map_or(submitted, |oldest| oldest.min(submitted)));
            }
        }
        Ok(oldest)
    }

    /// Notes of each job that has ended, where it is not noted yet, that it has.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn mark_ended(&self, now_ms: u64) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        for status in JobStatus::ALL.into_iter().filter(|status| status.is_over()) {
            sqlx::query("UPDATE jobs SET ended_ms = $1 WHERE ended_ms IS NULL AND status = $2")
                .bind(now_ms.cast_signed())
                .bind(status.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The artifacts of every job.
    ///
    /// # Errors
    /// Storage failed, or a record cannot be read.
    pub async fn job_artifacts(&self) -> Result<Vec<JobArtifacts>, StoreError> {
        let rows = sqlx::query("SELECT * FROM jobs").fetch_all(&self.pool).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let job = job_of_row(row)?;
            let ended: Option<i64> = row.try_get("ended_ms")?;
            // By their form and not by their field: what a later version records is found too.
            let mut named = BTreeSet::new();
            for column in ["text", "base_model", "machine", "recipe"] {
                let text: Option<String> = row.try_get(column)?;
                named.extend(digests(&text.unwrap_or_default()));
            }
            let records = sqlx::query("SELECT record FROM rounds WHERE job = $1 ORDER BY round")
                .bind(&job.id)
                .fetch_all(&self.pool)
                .await?;
            let mut exported: BTreeSet<Digest> = job.base_model.iter().map(|file| file.artifact.digest).collect();
            let mut last = None;
            for row in &records {
                named.extend(digests(row.try_get("record")?));
                let round: RoundRecord = parsed("a round", row, "record")?;
                if job.machine.best.is_some_and(|best| best.round == round.round) {
                    exported.insert(round.state.digest);
                }
                last = Some(round.state.digest);
            }
            exported.extend(last);
            let ended_ms = ended.filter(|_| job.status.is_over()).map(i64::cast_unsigned);
            found.push(JobArtifacts { ended_ms, named, exported });
        }
        Ok(found)
    }

    /// The committed rounds of a job within a range, in order.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn rounds_within(&self, job: &str, rounds: RangeInclusive<u32>) -> Result<Vec<RoundRecord>, StoreError> {
        let rows = sqlx::query("SELECT record FROM rounds WHERE job = $1 AND round BETWEEN $2 AND $3 ORDER BY round")
            .bind(job)
            .bind(i64::from(*rounds.start()))
            .bind(i64::from(*rounds.end()))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| parsed("a round", row, "record")).collect()
    }

    /// The committed rounds of a job, in order.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn rounds(&self, job: &str) -> Result<Vec<RoundRecord>, StoreError> {
        self.rounds_within(job, 0..=u32::MAX).await
    }
}

fn job_of_row(row: &SqliteRow) -> Result<JobRecord, StoreError> {
    let status: String = row.try_get("status")?;
    let submitted: i64 = row.try_get("submitted_ms")?;
    Ok(JobRecord {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        text: row.try_get("text")?,
        base_model: parsed("a base model", row, "base_model")?,
        submitted_ms: submitted.cast_unsigned(),
        status: status.parse().map_err(|source| StoreError::Record { what: "a job".into(), source })?,
        reason: row.try_get("reason")?,
        machine: parsed("a round machine", row, "machine")?,
        recipe: row.try_get("recipe")?,
    })
}

/// Everything in a text that has the form of a digest.
fn digests(text: &str) -> impl Iterator<Item = Digest> {
    text.split(|c: char| !c.is_ascii_hexdigit()).filter_map(|word| word.parse().ok())
}

fn json(what: &str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Record { what: what.into(), source })
}

fn parsed<T: for<'de> Deserialize<'de>>(what: &str, row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|source| StoreError::Record { what: what.into(), source })
}
