//! A folder into a repository, in pieces that each are complete once they are committed: a large file is a commit, and the small ones are the
//! last, so that a repository whose configuration is there has its weights. What the repository holds already is recognized by its hash,
//! which makes every call a continuation of the one before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::TryStreamExt;
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::{CommitOperation, RepoTreeEntry};
use hf_hub::{HFError, HFRepository, RepoTypeModel};
use serde::{Deserialize, Serialize};

use crate::Events;
use crate::download::{Hash, git_sha1, sha256};
use crate::session::{Session, offline};

/// From here on a file is a commit of its own. The hub stores files of this size apart from git in any case (10 MB is where it must).
const LARGE: u64 = 10_000_000;

#[derive(Deserialize)]
pub struct Request {
    repo: String,
    folder: PathBuf,
    files: Vec<String>,
    #[serde(default)]
    replaced: BTreeMap<String, String>,
    #[serde(default)]
    private: bool,
    revision: Option<String>,
    message: String,
}

#[derive(Serialize)]
pub struct Answer {
    url: String,
    sent: Vec<String>,
    kept: Vec<String>,
}

/// Bytes of one commit onto the meter of the whole upload.
struct Forward {
    session: Arc<Session>,
    before: u64,
}

impl ProgressHandler for Forward {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. }) = event {
            self.session.meter.done.store(self.before + bytes_completed, Ordering::Relaxed);
        }
    }
}

/// What the repository holds under a name.
struct Held {
    oid: String,
    size: u64,
    large: bool,
}

pub fn send(request: Request, events: Events) -> Result<Answer, String> {
    if offline() {
        return Err(format!("{}: HF_HUB_OFFLINE is set; unset it to upload", request.repo));
    }
    let session = Arc::new(Session::open()?);
    let inside = session.clone();
    session.drive(&events, async move { send_to(&inside, &request).await })
}

async fn send_to(session: &Arc<Session>, request: &Request) -> Result<Answer, String> {
    let id = &request.repo;
    let said = |e: HFError| match e {
        HFError::Forbidden { context } => {
            let message = context.server_message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default();
            format!(
                "{id}: the token may not write there{message}; use one with write access (https://huggingface.co/settings/tokens) and a name space of your own"
            )
        }
        HFError::AuthRequired { .. } => format!("{id}: uploading needs a valid token; log in (hf auth login) or set HF_TOKEN"),
        other => session.sentence(other, "model", id),
    };
    let create = || session.client.create_repository().repo_id(id).repo_type(RepoTypeModel).private(request.private).exist_ok(true).send();
    session.patiently(create).await.map_err(said)?;
    let repository = session.repository(RepoTypeModel, id);
    let branch = request.revision.as_deref().unwrap_or("main");
    if branch != "main" {
        match session.patiently(|| repository.create_branch().branch(branch).send()).await {
            Ok(()) | Err(HFError::Conflict { .. }) => {} // new, or there
            Err(error) => return Err(said(error)),
        }
    }
    let held = listing(session, &repository, branch).await.map_err(said)?;
    let mut answer = Answer { url: format!("{}/{id}", session.client.endpoint()), sent: Vec::new(), kept: Vec::new() };
    let mut large = Vec::new();
    let mut small = Vec::new();
    for name in &request.files {
        if let Some(text) = request.replaced.get(name) {
            if held.get(name).is_some_and(|held| held.oid == Hash::git_of(text.as_bytes())) {
                answer.kept.push(name.clone());
                continue;
            }
            small.push((name, CommitOperation::add_bytes(name.as_str(), text.clone().into_bytes()), text.len() as u64));
            continue;
        }
        let path = request.folder.join(name);
        let size = std::fs::metadata(&path).map_err(|e| format!("{}: {e}; check the folder", path.display()))?.len();
        if held.get(name).is_some_and(|held| held.size == size) && is_same(&path, &held[name]).await? {
            answer.kept.push(name.clone());
            continue;
        }
        let list = if size >= LARGE { &mut large } else { &mut small };
        list.push((name, CommitOperation::add_file(name.as_str(), path), size));
    }
    session.meter.start(&format!("uploading to {id}"), large.iter().chain(&small).map(|(.., size)| size).sum());
    let mut pieces: Vec<Vec<_>> = large.into_iter().map(|file| vec![file]).collect();
    if !small.is_empty() {
        pieces.push(small);
    }
    let mut before = 0;
    let count = pieces.len();
    for (i, piece) in pieces.into_iter().enumerate() {
        let names: Vec<_> = piece.iter().map(|(name, ..)| (*name).clone()).collect();
        let bytes: u64 = piece.iter().map(|(.., size)| size).sum();
        let operations: Vec<CommitOperation> = piece.into_iter().map(|(_, operation, _)| operation).collect();
        let message = if count > 1 { format!("{} ({} of {count})", request.message, i + 1) } else { request.message.clone() };
        let commit = || {
            let progress = Forward { session: session.clone(), before };
            repository.create_commit().operations(operations.clone()).commit_message(message.as_str()).revision(branch).progress(progress).send()
        };
        session.patiently(commit).await.map_err(|e| {
            let done = if answer.sent.is_empty() {
                String::new()
            } else {
                format!("; {} of {} files are there", answer.sent.len(), request.files.len() - answer.kept.len())
            };
            format!("{}{done}: the same command continues", said(e))
        })?;
        before += bytes;
        session.meter.done.store(before, Ordering::Relaxed);
        answer.sent.extend(names);
    }
    // What the hub now lists is what counts.
    let held = listing(session, &repository, branch).await.map_err(said)?;
    if let Some(missing) = request.files.iter().find(|name| !held.contains_key(*name)) {
        return Err(format!("{id}: the hub took {missing} and does not list it; give the same command again"));
    }
    Ok(answer)
}

async fn listing(session: &Session, repository: &HFRepository<RepoTypeModel>, branch: &str) -> Result<BTreeMap<String, Held>, HFError> {
    let entries: Vec<RepoTreeEntry> =
        session.patiently(|| async { repository.list_tree().revision(branch).recursive(true).send()?.try_collect().await }).await?;
    let files = entries.into_iter().filter_map(|entry| match entry {
        RepoTreeEntry::File { oid, size, path, lfs, .. } => {
            Some((path, Held { oid, size: lfs.as_ref().and_then(|lfs| lfs.size).unwrap_or(size), large: lfs.is_some() }))
        }
        RepoTreeEntry::Directory { .. } => None,
    });
    Ok(files.collect())
}

/// A large file's entry is git's hash of a pointer to it, whose text its SHA-256 and size make up
/// (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md); so both kinds can be told from the listing alone.
async fn is_same(path: &Path, held: &Held) -> Result<bool, String> {
    let (path, large, size, oid) = (path.to_path_buf(), held.large, held.size, held.oid.clone());
    let said = |path: &Path, e: std::io::Error| format!("{}: {e}; check the folder", path.display());
    tokio::task::spawn_blocking(move || {
        let hash = if large {
            let pointer =
                format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {size}\n", sha256(&path).map_err(|e| said(&path, e))?);
            Hash::git_of(pointer.as_bytes())
        } else {
            git_sha1(&path).map_err(|e| said(&path, e))?
        };
        Ok(hash == oid)
    })
    .await
    .map_err(|e| format!("internal fault ({e})"))?
}
