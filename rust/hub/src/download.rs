//! Files of a repository in the cache that all Hugging Face programs share (https://huggingface.co/docs/huggingface_hub/guides/manage-cache):
//! bytes under blobs/ETAG, names under snapshots/COMMIT as links to them, branches under refs/.
//!
//! The client library can fill this cache too, but starts a broken download from nothing and believes what it gets. Here bytes grow in
//! blobs/ETAG.incomplete (where the Python client looks for them as well), a new attempt continues at their end, and nothing gets its
//! final name before its hash is what the hub's listing says.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFError, HFRepository, HFResult, RepoType, RepoTypeDataset, RepoTypeModel};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::session::{Session, TRIES, backoff};

/// Files fetched at once. One connection seldom fills a line; many compete for it.
const AT_ONCE: usize = 4;

/// What there are repositories of, as far as lquant reads them.
pub trait Kind: RepoType {
    /// As sentences call it.
    const NOUN: &'static str;
    /// The commit that a branch or tag stands at.
    fn commit(repository: &HFRepository<Self>, revision: &str) -> impl Future<Output = HFResult<Option<String>>>;
}

impl Kind for RepoTypeModel {
    const NOUN: &'static str = "model";
    async fn commit(repository: &HFRepository<Self>, revision: &str) -> HFResult<Option<String>> {
        Ok(repository.info().revision(revision).send().await?.sha)
    }
}

impl Kind for RepoTypeDataset {
    const NOUN: &'static str = "data set";
    async fn commit(repository: &HFRepository<Self>, revision: &str) -> HFResult<Option<String>> {
        Ok(repository.info().revision(revision).send().await?.sha)
    }
}

#[derive(Clone, Debug)]
pub struct RemoteFile {
    pub path: String,
    pub size: u64,
    /// Git's SHA-1 of the bytes; none for files in large-file storage, whose SHA-256 the listing does not give in a form that the client reads.
    blob: Option<String>,
}

impl RemoteFile {
    #[cfg(test)]
    pub fn of_size(path: &str, size: u64) -> Self {
        RemoteFile { path: path.into(), size, blob: None }
    }
}

/// A repository at one commit.
pub struct Snapshot<T: Kind> {
    pub repository: HFRepository<T>,
    pub id: String,
    pub commit: String,
    pub files: Vec<RemoteFile>,
    home: PathBuf,
    locks: PathBuf,
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A name out of a listing becomes a path here, so it must stay below its folder.
fn is_plain(path: &str) -> bool {
    !path.is_empty() && !path.contains('\\') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

pub fn home_of(cache: &Path, plural: &str, id: &str) -> PathBuf {
    cache.join(format!("{plural}--{}", id.replace('/', "--")))
}

/// The commit that the cache knows for a revision.
fn cached_commit(home: &Path, revision: &str) -> Option<String> {
    if is_commit(revision) {
        return Some(revision.to_string());
    }
    let text = fs::read_to_string(home.join("refs").join(revision)).ok()?;
    Some(text.trim().to_string()).filter(|commit| is_commit(commit))
}

/// The folder of a revision as an earlier run left it.
pub fn cached_folder(cache: &Path, plural: &str, id: &str, revision: &str) -> Option<(PathBuf, String)> {
    let home = home_of(cache, plural, id);
    let commit = cached_commit(&home, revision)?;
    let folder = home.join("snapshots").join(&commit);
    folder.is_dir().then_some((folder, commit))
}

impl<T: Kind> Snapshot<T> {
    /// Asks the hub which commit a revision is and what lies in it.
    pub async fn open(session: &Session, kind: T, id: &str, revision: &str) -> HFResult<Self> {
        let plural = kind.plural();
        let repository = session.repository(kind, id);
        // The listing of a branch does not name its commit, so that comes first, and the listing is of that commit.
        let commit = session.patiently(|| T::commit(&repository, revision)).await?;
        let commit = commit.filter(|sha| is_commit(sha)).ok_or_else(|| HFError::malformed_response("the commit of the revision"))?;
        let entries: Vec<RepoTreeEntry> =
            session.patiently(|| async { repository.list_tree().revision(commit.as_str()).recursive(true).send()?.try_collect().await }).await?;
        let files = entries.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { oid, size, path, lfs, .. } if is_plain(&path) => {
                let large_size = lfs.as_ref().and_then(|large| large.size);
                Some(RemoteFile { path, size: large_size.unwrap_or(size), blob: lfs.is_none().then_some(oid) })
            }
            _ => None,
        });
        let cache = session.client.cache_dir().to_path_buf();
        let home = home_of(&cache, plural, id);
        let locks = cache.join(".locks").join(home.file_name().unwrap_or_default());
        let snapshot = Snapshot { files: files.collect(), repository, id: id.into(), commit, home, locks };
        if !is_commit(revision) {
            write_text(&snapshot.home.join("refs").join(revision), &snapshot.commit)?;
        }
        Ok(snapshot)
    }

    pub fn folder(&self) -> PathBuf {
        self.home.join("snapshots").join(&self.commit)
    }

    /// Fetches what is missing of `files`, several at once.
    pub async fn fetch(&self, session: &Session, files: &[&RemoteFile]) -> Result<(), String> {
        let missing: Vec<_> = files.iter().filter(|file| !self.folder().join(&file.path).exists()).collect();
        let bytes = missing.iter().map(|file| file.size).sum();
        session.meter.start(&format!("downloading {}", self.id), bytes);
        futures::stream::iter(missing.into_iter().map(|file| self.fetch_file(session, file)))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await
            .map(|_| ())
    }

    async fn fetch_file(&self, session: &Session, file: &RemoteFile) -> Result<(), String> {
        let hash = self.hash_of(session, file).await?;
        let blob = self.home.join("blobs").join(hash.text());
        let said =
            |error: std::io::Error| format!("{}: {error}; check the room and the rights in {}", blob.display(), session.client.cache_dir().display());
        if !blob.exists() {
            let lock = self.lock(hash.text()).await.map_err(said)?;
            if !blob.exists() {
                self.fill(session, file, &hash, &blob).await?;
            } else {
                session.meter.add(file.size);
            }
            drop(lock);
        } else {
            session.meter.add(file.size);
        }
        link(&blob, &self.folder().join(&file.path)).map_err(said)
    }

    /// What the cache names the blob by and what its bytes must hash to.
    async fn hash_of(&self, session: &Session, file: &RemoteFile) -> Result<Hash, String> {
        if let Some(blob) = &file.blob {
            return Ok(Hash::Git(blob.clone()));
        }
        let prefix = self.repository.repo_type().url_prefix();
        let etag = session
            .large_file_etag(&format!("{}/{prefix}{}/resolve/{}", session.client.endpoint(), self.id, self.commit), &file.path)
            .await
            .map_err(|reason| format!("{}: {reason}", self.id))?;
        if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("{}: the hub gives no SHA-256 for {}; it cannot be checked, so it is not taken", self.id, file.path));
        }
        Ok(Hash::Sha256(etag))
    }

    /// One task of one process at a time fills a blob (two names of a repository can stand for the same bytes); others wait, and find it there.
    async fn lock(&self, etag: &str) -> std::io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        let file = File::create(self.locks.join(format!("{etag}.lock")))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                // Waited for without blocking the thread, on which the holder may run.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    async fn fill(&self, session: &Session, file: &RemoteFile, hash: &Hash, blob: &Path) -> Result<(), String> {
        let growing = blob.with_extension("incomplete");
        let said = |error: std::io::Error| format!("{}: {error}; check the room and the rights there", growing.display());
        fs::create_dir_all(blob.parent().unwrap_or(Path::new("."))).map_err(said)?;
        let mut out = OpenOptions::new().create(true).append(true).open(&growing).map_err(said)?;
        let mut have = out.metadata().map_err(said)?.len();
        if have > file.size {
            out.set_len(0).map_err(said)?;
            have = 0;
        }
        session.meter.add(have);
        // Each attempt asks for what is missing then. Attempts that brought something are not counted: a line that breaks every minute still ends.
        let mut in_vain = 0;
        while have < file.size {
            let before = have;
            let result = session
                .patiently(|| {
                    let range = (have > 0).then_some(have..file.size);
                    self.repository.download_file_stream().filename(&file.path).revision(&self.commit).maybe_range(range).send()
                })
                .await;
            let (announced, mut stream) = result.map_err(|e| session.sentence(e, T::NOUN, &self.id))?;
            if have > 0 && announced == Some(file.size) {
                // A server that knows no ranges sends the whole again.
                out.set_len(0).map_err(said)?;
                have = 0;
            }
            let mut broken = None;
            while let Some(chunk) = stream.next().await {
                match chunk {
                    Ok(bytes) => {
                        out.write_all(&bytes).map_err(said)?;
                        have += bytes.len() as u64;
                        session.meter.add(bytes.len() as u64);
                    }
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            if have > file.size {
                break; // not what was announced; the hash will say so
            }
            in_vain = if have > before { 0 } else { in_vain + 1 };
            if in_vain == TRIES {
                let reason = broken.map(|e| session.sentence(e, T::NOUN, &self.id));
                return Err(reason.unwrap_or_else(|| {
                    format!("{}: {} ends after {have} of {} bytes; give the same command again to continue", self.id, file.path, file.size)
                }));
            }
            if in_vain > 0 {
                tokio::time::sleep(backoff(in_vain - 1)).await;
            }
        }
        out.sync_all().map_err(said)?;
        drop(out);
        let arrived = hash.of(&growing).map_err(said)?;
        if arrived != hash.text() {
            let _ = fs::remove_file(&growing);
            return Err(format!(
                "{}: what arrived as {} hashes to {arrived} and should to {}; it was thrown away: give the same command again, and if that repeats ask who serves it",
                self.id,
                file.path,
                hash.text()
            ));
        }
        fs::rename(&growing, blob).map_err(said)
    }
}

fn write_text(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)
}

/// A relative link, so that the cache can be moved.
fn link(blob: &Path, pointer: &Path) -> std::io::Result<()> {
    let parent = pointer.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    // From snapshots/COMMIT/a/b to blobs/ETAG: up as many steps as the name has parts below the repository's folder.
    let home = blob.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let steps = parent.strip_prefix(home).map(|below| below.components().count()).unwrap_or(0);
    let target = "../".repeat(steps) + "blobs/" + &blob.file_name().unwrap_or_default().to_string_lossy();
    match std::os::unix::fs::symlink(target, pointer) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hashed<D: Digest>(path: &Path, mut hash: D) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let size = file.read(&mut buffer)?;
        if size == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..size]);
    }
}

/// How the hub names the bytes of a file.
pub enum Hash {
    Git(String),
    Sha256(String),
}

impl Hash {
    pub fn text(&self) -> &str {
        match self {
            Hash::Git(text) | Hash::Sha256(text) => text,
        }
    }
    /// Git's hash of bytes.
    pub fn git_of(bytes: &[u8]) -> String {
        hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
    }
    /// The same kind of hash of a file here.
    pub fn of(&self, path: &Path) -> std::io::Result<String> {
        match self {
            Hash::Git(_) => git_sha1(path),
            Hash::Sha256(_) => sha256(path),
        }
    }
}

pub fn sha256(path: &Path) -> std::io::Result<String> {
    hashed(path, Sha256::new())
}

/// As git names a blob: of "blob SIZE\0" and the bytes.
pub fn git_sha1(path: &Path) -> std::io::Result<String> {
    let size = fs::metadata(path)?.len();
    hashed(path, Sha1::new().chain_update(format!("blob {size}\0")))
}
