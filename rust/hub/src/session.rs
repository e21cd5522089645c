//! What every conversation with the hub shares: the client, patience with a hub that is busy, progress, and sentences in place of error codes.

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::{HFClient, HFError, HFRepository, HFResult, RepoType, split_id};

use crate::Events;

/// Times that a request is made again, at waits of 1, 2, 4, … seconds unless the hub names one: half a minute in all, what a restart takes.
pub const TRIES: u32 = 6;
/// The longest wait that the hub can ask for. Its limits are counted over five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

pub const INTERRUPTED: &str = "interrupted";

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"))
}

pub fn offline() -> bool {
    is_on("HF_HUB_OFFLINE")
}

/// As the Python client finds it, and like there without the white space around it, which would make the header invalid.
fn token() -> Option<String> {
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let file = || {
        let path = variable("HF_TOKEN_PATH").map(Into::into).unwrap_or_else(|| hf_hub::hf_home().join("token"));
        std::fs::read_to_string(path).ok()
    };
    variable("HF_TOKEN").or_else(file).map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// No sentence may carry the token, whatever a server or a library put into it.
pub fn without_token(text: String) -> String {
    match token() {
        Some(token) => text.replace(&token, "…"),
        None => text,
    }
}

/// A URL as a message may show it: what follows the path can be a signature.
pub fn plain_url(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// Bytes moved so far, written by the tasks and read by the loop that reports.
#[derive(Default)]
pub struct Meter {
    pub done: AtomicU64,
    pub total: AtomicU64,
    what: Mutex<String>,
    remarks: Mutex<Vec<String>>,
}

impl Meter {
    pub fn start(&self, what: &str, total: u64) {
        *self.what.lock().unwrap() = what.into();
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
    pub fn remark(&self, text: String) {
        self.remarks.lock().unwrap().push(text);
    }
    /// False when the caller wants to stop.
    fn report(&self, events: &Events) -> bool {
        let remarks = std::mem::take(&mut *self.remarks.lock().unwrap());
        let mut go_on = true;
        for text in remarks {
            go_on &= events.report(&without_token(text), 0, 0);
        }
        let total = self.total.load(Ordering::Relaxed);
        if total > 0 {
            go_on &= events.report(&self.what.lock().unwrap(), self.done.load(Ordering::Relaxed).min(total), total);
        }
        go_on
    }
}

pub struct Session {
    pub client: HFClient,
    pub meter: Meter,
    /// Follows no redirect.
    heads: reqwest::Client,
    token: Option<String>,
}

impl Session {
    pub fn open() -> Result<Session, String> {
        let token = token();
        // Patience is ours: the client's own does not listen to Retry-After.
        let mut builder = HFClient::builder().user_agent(concat!("lquant/", env!("CARGO_PKG_VERSION"))).retry_max_attempts(0);
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|e| match e {
            HFError::Url(_) => "HF_ENDPOINT is no valid URL; mend it or unset it".to_string(),
            other => format!("the client of the hub cannot be made ({other})"),
        })?;
        let heads = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().map_err(|e| format!("no HTTP client ({e})"))?;
        Ok(Session { client, meter: Default::default(), heads, token })
    }

    /// The ETag of a file in large-file storage: its SHA-256. It stands in the answer that redirects to the storage, which the client library follows.
    pub async fn large_file_etag(&self, base: &str, path: &str) -> Result<String, String> {
        let mut url = reqwest::Url::parse(base).map_err(|e| e.to_string())?;
        url.path_segments_mut().map_err(|()| "HF_ENDPOINT is no base of addresses".to_string())?.extend(path.split('/'));
        let mut reason = String::new();
        for attempt in 0..TRIES {
            let mut request = self.heads.head(url.clone());
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() || answer.status().is_redirection() => {
                    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
                    // A repository that was renamed redirects within the hub.
                    if let (None, Some(next)) =
                        (header("x-linked-etag"), header("location").filter(|next| next.starts_with('/') && !next.starts_with("//")))
                    {
                        url = url.join(next).map_err(|e| e.to_string())?;
                        continue;
                    }
                    let etag = header("x-linked-etag").or(header("etag")).unwrap_or_default();
                    return Ok(etag.trim_start_matches("W/").trim_matches('"').to_string());
                }
                Ok(answer) => {
                    reason = match answer.status().as_u16() {
                        401 | 403 => format!("{0} does not give out {path}; log in and accept the terms at {0}", self.client.endpoint()),
                        _ => format!("{} answers {} for {path}; give the same command again", self.client.endpoint(), answer.status()),
                    };
                    if !matches!(answer.status().as_u16(), 408 | 429 | 500..=504) {
                        break;
                    }
                    let asked = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
                    let wait = asked.map(Duration::from_secs).unwrap_or(backoff(attempt)).min(LONGEST_WAIT);
                    tokio::time::sleep(wait).await;
                }
                Err(error) => {
                    reason = format!("{} cannot be reached ({}); check the network", self.client.endpoint(), innermost(&error));
                    tokio::time::sleep(backoff(attempt)).await;
                }
            }
        }
        Err(reason)
    }

    pub fn repository<T: RepoType>(&self, kind: T, id: &str) -> HFRepository<T> {
        let (owner, name) = split_id(id);
        self.client.repository(kind, owner, name)
    }

    /// Runs `work` to its end on this thread, reporting meanwhile.
    pub fn drive<T>(&self, events: &Events, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| format!("no threads for the transfer ({e})"))?;
        let answer = runtime.block_on(async {
            tokio::pin!(work);
            loop {
                tokio::select! {
                    answer = &mut work => return answer,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {
                        if !self.meter.report(events) {
                            return Err(INTERRUPTED.to_string());
                        }
                    }
                }
            }
        });
        runtime.shutdown_background(); // after an interrupt nobody waits for what still runs
        self.meter.report(events);
        answer
    }

    /// Makes a request until it succeeds or fails in a way that waiting does not mend.
    pub async fn patiently<T, F: Future<Output = HFResult<T>>>(&self, mut request: impl FnMut() -> F) -> HFResult<T> {
        for attempt in 0.. {
            let error = match request().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(wait) = wait_after(&error, attempt).filter(|_| attempt + 1 < TRIES) else { return Err(error) };
            if wait > Duration::from_secs(5) {
                self.meter.remark(format!("the hub is busy; trying again in {} s", wait.as_secs()));
            }
            tokio::time::sleep(wait).await;
        }
        unreachable!()
    }

    /// What went wrong with the `kind` ("model", "data set") of that name, and what mends it.
    pub fn sentence(&self, error: HFError, kind: &str, id: &str) -> String {
        let host = self.client.endpoint();
        let said = |message: &Option<String>| message.as_deref().filter(|m| !m.is_empty()).map(|m| format!(" ({m})")).unwrap_or_default();
        let missing = || {
            let login = if self.token.is_some() { "" } else { ", or log in if it is private (hf auth login, or HF_TOKEN=…)" };
            format!("{id}: there is no such {kind} on {host}; check the name{login}")
        };
        match error {
            HFError::AuthRequired { context } => {
                let message = said(&context.server_message);
                if self.token.is_some() {
                    format!(
                        "{id}: {host} refuses the token{message}; log in again (hf auth login) or mend HF_TOKEN, and check the name of the {kind}"
                    )
                } else {
                    format!(
                        "{id}: {host} has no such {kind} or does not show it to strangers{message}; check the name, or log in (hf auth login, or HF_TOKEN=…)"
                    )
                }
            }
            HFError::Forbidden { context } => {
                let message = said(&context.server_message);
                format!("{id}: {host} does not allow this{message}; accept the {kind}'s terms at {host}/{id}, or use a token with the right to do it")
            }
            HFError::RepoNotFound { .. } => missing(),
            HFError::RevisionNotFound { context: Some(context), .. } if context.error_code.as_deref() == Some("RepoNotFound") => missing(),
            HFError::RevisionNotFound { revision, .. } => format!("{id}: has no revision {revision}; name a branch, a tag or a commit that is there"),
            HFError::EntryNotFound { path, .. } => format!("{id}: has no file {path} at this revision; check the name on {host}/{id}"),
            HFError::RateLimited { .. } => format!(
                "{id}: {host} allows no more requests for now; wait some minutes and give the same command again, logged in for a higher limit"
            ),
            HFError::Conflict { context } => {
                format!("{id}: {host} reports a conflict{}; somebody else writes there: give the same command again", said(&context.server_message))
            }
            HFError::Http { context } => {
                format!(
                    "{id}: {host} answers {}{} for {}; give the same command again later",
                    context.status,
                    said(&context.server_message),
                    plain_url(&context.url)
                )
            }
            HFError::Request { source, .. } => {
                let reason = innermost(&source);
                format!("{id}: {host} cannot be reached ({reason}); check the network, or give a folder that is here")
            }
            HFError::Io(e) => format!("{id}: {e}; check the room and the rights in {}", self.client.cache_dir().display()),
            HFError::CacheLockTimeout { path } => {
                format!("{id}: another process holds {}; wait for it and give the same command again", path.display())
            }
            other => format!("{id}: {other}; give the same command again"),
        }
    }
}

/// The cause at the bottom, which alone says something ("connection refused").
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

pub fn backoff(attempt: u32) -> Duration {
    Duration::from_secs(1 << attempt.min(16))
}

/// How long to wait before trying again; none when that would not help.
fn wait_after(error: &HFError, attempt: u32) -> Option<Duration> {
    let backoff = backoff(attempt);
    match error {
        HFError::RateLimited { retry_after, .. } => Some(retry_after.unwrap_or(backoff).min(LONGEST_WAIT)),
        HFError::Http { context } if matches!(context.status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) => Some(backoff),
        // A host that refuses connections will not take one in half a minute; one that broke off in the middle may.
        HFError::Request { source, .. } if source.is_timeout() || !(source.is_connect() || source.is_builder()) => Some(backoff),
        _ => None,
    }
}

pub fn is_unreachable(error: &HFError) -> bool {
    match error {
        HFError::Request { source, .. } => source.is_connect() || source.is_timeout(),
        HFError::Http { context } => matches!(context.status.as_u16(), 500 | 502 | 503 | 504),
        _ => false,
    }
}
