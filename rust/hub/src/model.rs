//! Which files of a model's repository lquant reads, and where they end up.

use std::path::PathBuf;

use hf_hub::RepoTypeModel;
use serde::{Deserialize, Serialize};

use crate::Events;
use crate::download::{RemoteFile, Snapshot, cached_folder};
use crate::session::{Session, is_unreachable, offline};

#[derive(Deserialize)]
pub struct Request {
    repo: String,
    revision: Option<String>,
    file: Option<String>,
}

#[derive(Serialize)]
pub struct Answer {
    folder: PathBuf,
    revision: String,
    file: Option<PathBuf>,
}

/// Everything but weights: configuration, tokenizer, templates, the card (for licence and language) and what AWQ and plans left.
const SMALL: &[&str] = &[
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "model.safetensors.index.json",
    "lquant.json",
    "plan.json",
    "README.md",
];

fn is_weights(path: &str) -> bool {
    path.starts_with("model") && path.ends_with(".safetensors") && !path.contains('/')
}

pub fn fetch(request: Request, events: Events) -> Result<Answer, String> {
    let session = Session::open()?;
    let revision = request.revision.as_deref().unwrap_or("main");
    session.drive(&events, fetch_from(&session, &request, revision))
}

async fn fetch_from(session: &Session, request: &Request, revision: &str) -> Result<Answer, String> {
    let id = &request.repo;
    let cached = || cached_folder(session.client.cache_dir(), "models", id, revision);
    let answer = |folder: PathBuf, revision: String| Answer { file: request.file.as_ref().map(|file| folder.join(file)), folder, revision };
    if offline() {
        let (folder, commit) = cached().ok_or_else(|| format!("{id}: is not in the cache, and HF_HUB_OFFLINE is set; unset it, or give a folder"))?;
        complete(&folder, request)?;
        return Ok(answer(folder, commit));
    }
    let snapshot = match Snapshot::open(session, RepoTypeModel, id, revision).await {
        Ok(snapshot) => snapshot,
        Err(error) => match cached().filter(|(folder, _)| is_unreachable(&error) && complete(folder, request).is_ok()) {
            Some((folder, commit)) => {
                session.meter.remark(format!("{id}: {} cannot be reached; using what the cache has, commit {commit}", session.client.endpoint()));
                return Ok(answer(folder, commit));
            }
            None => return Err(session.sentence(error, "model", id)),
        },
    };
    let wanted = wanted(&snapshot.files, request)?;
    snapshot.fetch(session, &wanted).await?;
    Ok(answer(snapshot.folder(), snapshot.commit.clone()))
}

/// An earlier run may have been cut, so what the cache holds is not always a model.
fn complete(folder: &std::path::Path, request: &Request) -> Result<(), String> {
    let id = &request.repo;
    let lacks = |what: &str| format!("{id}: the cache lacks {what}, and the hub is not asked for it; give the same command again with a network");
    let names: Vec<String> = std::fs::read_dir(folder)
        .map_err(|_| lacks("the model"))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    let present = |name: &str| folder.join(name).exists(); // follows the link to its blob
    match &request.file {
        Some(file) => pieces(file).iter().all(|piece| present(piece)).then_some(()).ok_or_else(|| lacks(file)),
        None => {
            let index = std::fs::read_to_string(folder.join("model.safetensors.index.json")).ok();
            let index: serde_json::Value = index.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let shards = index["weight_map"].as_object().map(|map| map.values().filter_map(|v| v.as_str()).collect::<Vec<_>>()).unwrap_or_default();
            if let Some(missing) = shards.iter().find(|shard| !present(shard)) {
                return Err(lacks(missing));
            }
            let has_weights = names.iter().any(|name| is_weights(name) && present(name));
            (present("config.json") && has_weights).then_some(()).ok_or_else(|| lacks("part of the model"))
        }
    }
}

/// All pieces of a split GGUF file NAME-00001-of-00003.gguf, or the file alone.
fn pieces(file: &str) -> Vec<String> {
    let split = file.strip_suffix(".gguf").and_then(|stem| {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
        digits(number)?;
        Some((name, digits(count)?))
    });
    match split {
        Some((name, count)) => (1..=count).map(|i| format!("{name}-{i:05}-of-{count:05}.gguf")).collect(),
        None => vec![file.to_string()],
    }
}

fn wanted<'a>(files: &'a [RemoteFile], request: &Request) -> Result<Vec<&'a RemoteFile>, String> {
    let id = &request.repo;
    let named = |name: &str| files.iter().find(|file| file.path == name);
    let gguf: Vec<_> = files.iter().filter(|file| file.path.ends_with(".gguf")).map(|file| file.path.as_str()).collect();
    if let Some(file) = &request.file {
        return pieces(file)
            .iter()
            .map(|piece| {
                named(piece).ok_or_else(|| {
                    format!("{id}: has no file {piece}{}", if gguf.is_empty() { String::new() } else { format!("; it has {}", gguf.join(", ")) })
                })
            })
            .collect();
    }
    let mut wanted: Vec<_> = SMALL.iter().filter_map(|name| named(name)).collect();
    let weights: Vec<_> = files.iter().filter(|file| is_weights(&file.path)).collect();
    // Some repositories keep the weights a second time in one file that no index names, or in another framework's form.
    let indexed = named("model.safetensors.index.json").is_some();
    let shards: Vec<_> = weights.iter().copied().filter(|file| file.path.contains("-of-")).collect();
    wanted.extend(if indexed && !shards.is_empty() { shards } else { weights.clone() });
    if weights.is_empty() {
        return Err(match gguf.first() {
            Some(first) => format!("{id}: holds GGUF files only; name one of them, as in --model {id}/{first}"),
            None => format!("{id}: holds no model*.safetensors; lquant reads safetensors and GGUF: choose a repository that has them"),
        });
    }
    if named("config.json").is_none() {
        return Err(format!("{id}: holds no config.json; choose the model's own repository"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn split_files_have_all_their_pieces() {
        assert_eq!(pieces("m-00002-of-00003.gguf"), ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]);
        assert_eq!(pieces("q/m.Q4_K_M.gguf"), ["q/m.Q4_K_M.gguf"]);
    }
}
