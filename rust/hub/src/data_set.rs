//! Rows of a data set of the hub. A data set can be thousands of times what calibration needs, so of its Parquet files only footers and some
//! row groups are fetched: groups drawn over the whole split, for data sets are often sorted by source, and an equal share of rows from each.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hf_hub::{HFRepository, RepoTypeDataset};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::Events;
use crate::download::{RemoteFile, Snapshot, cached_folder, home_of};
use crate::parquet_rows::{Source, Table};
use crate::session::{Session, is_unreachable, offline};

/// Row groups to draw from. They hold 1,000 rows as the `datasets` library writes them by default, so that usual numbers of rows come from a few
/// dozen places of the data set, and most of it is never fetched.
const GROUPS: usize = 64;
/// Files whose footers are read; a split of more files is sampled.
const FILES: usize = 24;
/// Of a JSON-lines file, whose rows cannot be found without reading all before them, this many times the rows needed are read.
const LINES: usize = 8;
/// Bytes of it a request.
const STEP: u64 = 4 << 20;

#[derive(Deserialize)]
pub struct Request {
    repo: String,
    config: Option<String>,
    split: Option<String>,
    revision: Option<String>,
    rows: Option<usize>,
    seed: u64,
}

#[derive(Serialize)]
pub struct Answer {
    file: PathBuf,
    revision: String,
    rows: usize,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same draw everywhere from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * bound as u128) >> 64) as usize
    }
    /// `count` of 0 … total − 1 without replacement, ascending; all when there are no more.
    fn draw(&mut self, count: usize, total: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..total).collect();
        for i in 0..count.min(total) {
            let j = i + self.below(total - i);
            all.swap(i, j);
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }
}

/// A file on the hub, read by ranges from a thread that may block.
struct HubFile {
    session: Arc<Session>,
    repository: HFRepository<RepoTypeDataset>,
    commit: String,
    path: String,
    size: u64,
}

impl Source for HubFile {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, range: Range<u64>) -> Result<Bytes, String> {
        let request = || self.repository.download_file_to_bytes().filename(&self.path).revision(&self.commit).range(range.clone()).send();
        let bytes = Handle::current()
            .block_on(self.session.patiently(request))
            .map_err(|e| self.session.sentence(e, "data set", &self.repository.repo_path()))?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(format!("{} of {} bytes came", bytes.len(), range.end - range.start));
        }
        self.session.meter.add(bytes.len() as u64);
        Ok(bytes)
    }
}

/// A path's words between slashes, dashes and dots: "data/train-00000-of-00006.parquet" has "data", "train", ….
fn has_word(path: &str, word: &str) -> bool {
    path.split(['/', '-', '.', '_']).any(|part| part == word) || path.split('/').any(|part| part == word)
}

/// The files of one split, by the names that data sets use, all of one kind.
fn files_of<'a>(files: &'a [RemoteFile], request: &Request, split: &str) -> Result<Vec<&'a RemoteFile>, String> {
    let id = &request.repo;
    for extension in [".parquet", ".jsonl"] {
        let kind: Vec<_> = files.iter().filter(|file| file.path.ends_with(extension) && file.size > 0).collect();
        let mut found: Vec<_> = kind.iter().copied().filter(|file| has_word(&file.path, split)).collect();
        // Files that name no split at all are the train split.
        let names_none = !kind.iter().any(|file| ["train", "validation", "valid", "test", "dev"].iter().any(|word| has_word(&file.path, word)));
        if found.is_empty() && split == "train" && names_none {
            found = kind;
        }
        // A configuration is a folder of its own.
        let folder = |file: &RemoteFile| file.path.split_once('/').map_or(String::new(), |(first, _)| first.to_string());
        let configs: BTreeSet<String> =
            found.iter().map(|file| folder(file)).filter(|name| !name.is_empty() && name != "data" && name != split).collect();
        if let Some(config) = &request.config {
            found.retain(|file| folder(file) == *config || (has_word(&file.path, config) && !configs.contains(config)));
            if found.is_empty() && !configs.is_empty() {
                let names: Vec<_> = configs.into_iter().collect();
                return Err(format!("{id}: has no configuration {config}; it has {}", names.join(", ")));
            }
        } else if configs.contains("default") {
            found.retain(|file| folder(file) == "default");
        } else if configs.len() > 1 {
            let names: Vec<_> = configs.into_iter().collect();
            return Err(format!("{id}: has several configurations ({}); name one of them, as in {id}:{}", names.join(", "), names[0]));
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// Where the rows are kept: the name says all that they depend on.
fn place(request: &Request, split: &str, commit: &str) -> PathBuf {
    let config = request.config.as_deref().unwrap_or("default").replace('/', "-");
    let which = request.rows.map_or("all".into(), |rows| format!("{rows}-{}", request.seed));
    let folder = home_of(&hf_hub::hf_home().join("lquant"), "datasets", &request.repo).join(commit);
    folder.join(format!("{config}-{}-{which}.jsonl", split.replace('/', "-")))
}

pub fn fetch(request: Request, events: Events) -> Result<Answer, String> {
    let session = Arc::new(Session::open()?);
    let inside = session.clone();
    session.drive(&events, async move {
        let kept = |commit: &str| {
            let file = place(&request, request.split.as_deref().unwrap_or("train"), commit);
            let rows = BufReader::new(File::open(&file).ok()?).lines().count();
            Some(Answer { file, revision: commit.into(), rows })
        };
        let revision = request.revision.as_deref().unwrap_or("main");
        let cached = || cached_folder(inside.client.cache_dir(), "datasets", &request.repo, revision).and_then(|(_, commit)| kept(&commit));
        if offline() {
            return cached().ok_or_else(|| {
                format!("{}: these rows are not in the cache, and HF_HUB_OFFLINE is set; unset it, or give rows that are here", request.repo)
            });
        }
        let snapshot = match Snapshot::open(&inside, RepoTypeDataset, &request.repo, revision).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                return cached().filter(|_| is_unreachable(&error)).ok_or_else(|| inside.sentence(error, "data set", &request.repo));
            }
        };
        // What earlier runs fetched is found by its revision when the hub is away.
        fs::create_dir_all(snapshot.folder()).map_err(|e| format!("{}: {e}; check the room and the rights there", snapshot.folder().display()))?;
        if let Some(answer) = kept(&snapshot.commit) {
            return Ok(answer);
        }
        let commit = snapshot.commit.clone();
        let split = request.split.clone().unwrap_or_else(|| "train".into());
        let mut from = snapshot;
        let mut files: Vec<RemoteFile> = files_of(&from.files, &request, &split)?.into_iter().cloned().collect();
        if files.is_empty() {
            // Data sets in other forms are converted by the hub itself, on a branch of their own.
            if let Ok(converted) = Snapshot::open(&inside, RepoTypeDataset, &request.repo, "refs/convert/parquet").await {
                files = files_of(&converted.files, &request, &split)?.into_iter().cloned().collect();
                from = converted;
            }
        }
        if files.is_empty() {
            return Err(format!(
                "{}: holds no Parquet or .jsonl file of the split {split}; name a split that is there, as in {}:default/test",
                request.repo, request.repo
            ));
        }
        let to = place(&request, &split, &commit);
        let sources = files
            .into_iter()
            .map(|file| HubFile {
                session: inside.clone(),
                repository: from.repository.clone(),
                commit: from.commit.clone(),
                path: file.path,
                size: file.size,
            })
            .collect();
        let session = inside.clone();
        let rows =
            tokio::task::spawn_blocking(move || write_rows(&session, sources, &request, &to).map(|rows| Answer { file: to, revision: commit, rows }));
        rows.await.map_err(|e| format!("internal fault ({e})"))?
    })
}

/// Draws the rows and puts them into `to`, which appears when it is complete.
fn write_rows(session: &Session, mut sources: Vec<HubFile>, request: &Request, to: &Path) -> Result<usize, String> {
    let said = |e: std::io::Error| format!("{}: {e}; check the room and the rights there", to.display());
    fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).map_err(said)?;
    let growing = to.with_extension("partial");
    let mut out = BufWriter::new(File::create(&growing).map_err(said)?);
    let mut random = Random(request.seed);
    if request.rows.is_some() {
        let chosen = random.draw(FILES, sources.len());
        sources = sources.into_iter().enumerate().filter(|(i, _)| chosen.binary_search(i).is_ok()).map(|(_, source)| source).collect();
    }
    let rows = if sources[0].path.ends_with(".parquet") {
        draw_groups(session, sources, request, &mut random, &mut out)?
    } else {
        draw_lines(session, sources, request, &mut random, &mut out)?
    };
    if rows == 0 {
        return Err(format!("{}: this split holds no rows; name another", request.repo));
    }
    out.into_inner().map_err(|e| said(e.into_error()))?.sync_all().map_err(said)?;
    fs::rename(&growing, to).map_err(said)?;
    Ok(rows)
}

fn draw_groups(session: &Session, sources: Vec<HubFile>, request: &Request, random: &mut Random, out: &mut impl Write) -> Result<usize, String> {
    let about = |path: &str, e: String| format!("{}: {path}: {e}; give the same command again", request.repo);
    let mut tables = Vec::new();
    for source in sources {
        let path = source.path.clone();
        tables.push((Table::open(source).map_err(|e| about(&path, e))?, path));
    }
    let groups: Vec<(usize, usize, usize)> =
        tables.iter().enumerate().flat_map(|(t, (table, _))| table.groups().into_iter().enumerate().map(move |(g, rows)| (t, g, rows))).collect();
    let total: usize = groups.iter().map(|group| group.2).sum();
    let wanted = request.rows.unwrap_or(total).min(total);
    // Enough groups that a share of a quarter of each suffices, so that no group is drawn empty.
    let mean = (total / groups.len().max(1)).max(1);
    let chosen = if wanted == total { (0..groups.len()).collect() } else { random.draw(GROUPS.max(wanted.div_ceil(mean) * 4), groups.len()) };
    let mut there: usize = chosen.iter().map(|&i| groups[i].2).sum();
    let mut missing = wanted.min(there);
    let bytes: u64 = chosen.iter().map(|&i| tables[groups[i].0].0.bytes_of(groups[i].1)).sum();
    session.meter.start(&format!("reading rows of {}", request.repo), bytes);
    let mut written = 0;
    for i in chosen {
        let (t, g, rows) = groups[i];
        // Each group gives its part of what is still missing, rounded so that the sum comes out.
        let share = if there == rows { missing } else { (missing * rows).div_ceil(there.max(1)).min(missing) };
        there -= rows;
        missing -= share;
        if share > 0 {
            let (table, path) = &tables[t];
            written += table.write(g, Some(&random.draw(share, rows)), out).map_err(|e| about(path, e))?;
        }
    }
    Ok(written)
}

fn draw_lines(session: &Session, sources: Vec<HubFile>, request: &Request, random: &mut Random, out: &mut impl Write) -> Result<usize, String> {
    let enough = request.rows.map_or(usize::MAX, |rows| rows.saturating_mul(LINES));
    session.meter.start(&format!("reading rows of {}", request.repo), sources.iter().map(|source| source.size).sum());
    let mut lines: Vec<String> = Vec::new();
    for source in sources {
        let mut rest: Vec<u8> = Vec::new();
        let mut at = 0;
        while at < source.size && lines.len() < enough {
            let end = source.size.min(at + STEP);
            rest.extend_from_slice(&source.read(at..end)?);
            at = end;
            let whole = if at == source.size { rest.len() } else { rest.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1) };
            let text = String::from_utf8_lossy(&rest[..whole]).into_owned();
            lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(String::from));
            rest.drain(..whole);
        }
    }
    let chosen = random.draw(request.rows.unwrap_or(lines.len()), lines.len());
    for &i in &chosen {
        writeln!(out, "{}", lines[i]).map_err(|e| format!("{}: {e}; check the room for its rows", request.repo))?;
    }
    Ok(chosen.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_without_replacement() {
        let mut random = Random(7);
        for (count, total) in [(0, 5), (3, 5), (5, 5), (9, 5), (100, 1000)] {
            let drawn = random.draw(count, total);
            assert_eq!(drawn.len(), count.min(total));
            assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn.iter().all(|&i| i < total));
        }
    }

    #[test]
    fn finds_the_files_of_a_split() {
        let files = |paths: &[&str]| paths.iter().map(|path| RemoteFile::of_size(path, 1)).collect::<Vec<_>>();
        let request =
            |config: Option<&str>| Request { repo: "o/d".into(), config: config.map(Into::into), split: None, revision: None, rows: None, seed: 0 };
        let names = |files: &[RemoteFile], config: Option<&str>, split: &str| {
            files_of(files, &request(config), split).map(|found| found.iter().map(|file| file.path.clone()).collect::<Vec<_>>())
        };
        let tulu = files(&["README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]);
        assert_eq!(names(&tulu, None, "train").unwrap().len(), 2);
        assert!(names(&tulu, None, "test").unwrap().is_empty());
        let arc =
            files(&["ARC-Easy/test-00000-of-00001.parquet", "ARC-Challenge/test-00000-of-00001.parquet", "ARC-Easy/train-00000-of-00001.parquet"]);
        assert_eq!(names(&arc, Some("ARC-Easy"), "test").unwrap(), ["ARC-Easy/test-00000-of-00001.parquet"]);
        assert!(names(&arc, None, "test").unwrap_err().contains("ARC-Challenge, ARC-Easy"));
        assert!(names(&arc, Some("nope"), "test").unwrap_err().contains("no configuration nope"));
        let converted = files(&["default/train/0000.parquet", "default/validation/0000.parquet", "other/train/0000.parquet"]);
        assert_eq!(names(&converted, None, "train").unwrap(), ["default/train/0000.parquet"]);
        assert_eq!(names(&files(&["train.jsonl", "valid.jsonl"]), None, "valid").unwrap(), ["valid.jsonl"]);
        assert_eq!(names(&files(&["a.parquet"]), None, "train").unwrap(), ["a.parquet"]);
    }
}
