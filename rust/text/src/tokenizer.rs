//! Text to ids and back, exactly as the Python package `tokenizers` does it: the same crate, fed with the same file.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::error::Category;
use tokenizers::{AddedToken, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use crate::bounded::{self, BoundedDecoder, BoundedNormalizer};

type Tokenizer = TokenizerImpl<ModelWrapper, BoundedNormalizer, PreTokenizerWrapper, PostProcessorWrapper, BoundedDecoder>;

pub struct LoadedTokenizer {
    tokenizer: Tokenizer,
}

/// A token that tokenizer_config.json or its companions name.
#[derive(Deserialize)]
struct ExtraToken {
    #[serde(flatten)]
    token: AddedToken,
    on_clash: OnClash,
}

/// What becomes of an added token of the same content that tokenizer.json already holds.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnClash {
    Replace,
    Keep,
    MakeSpecial,
}

/// What is wrong with tokenizer.json, without the names of the crates' types.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = match error.classify() {
        Category::Data if text.contains("untagged enum") => "a part of no known kind, or with fields of the wrong types",
        Category::Data => text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what),
        _ => "no valid JSON, or nested too deeply",
    };
    match error.line() {
        0 => what.to_owned(), // a value that was parsed before
        line => format!("line {line}, column {}: {what}", error.column()),
    }
}

fn narrow(id: u32) -> Result<i32, String> {
    i32::try_from(id).map_err(|_| format!("token id {id} is beyond {}", i32::MAX))
}

/// A pattern such as (a*)*b tries each way to split a run of letters, from each letter on. The engine bounds the tries from one
/// place; this bounds those of a whole search by as many. What exceeds them is an error of the text's encoding.
fn bound_regexes() {
    const MOST_TRIES: std::os::raw::c_ulong = 10_000_000;
    // Safety: it sets a number that searches read when they begin, to the same value each time.
    unsafe { onig_sys::onig_set_retry_limit_in_search(MOST_TRIES) };
}

impl LoadedTokenizer {
    pub fn open(json: &[u8], added_tokens: &[u8]) -> Result<Self, String> {
        bound_regexes();
        bounded::check(json)?;
        let mut tokenizer: Tokenizer = serde_json::from_slice(json).map_err(|e| said(&e))?;
        // A tokenizer.json may carry the limits of whoever saved it last; callers cut and pad for themselves.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);

        let extra: Vec<ExtraToken> = serde_json::from_slice(added_tokens).map_err(|e| format!("added tokens: {e}"))?;
        let mut known: HashMap<String, AddedToken> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| (token.content.clone(), token)).collect();
        let mut wanted = Vec::new();
        for ExtraToken { token, on_clash } in extra {
            let token = match (on_clash, known.get(&token.content)) {
                (OnClash::Replace, _) | (_, None) => token,
                (OnClash::Keep, Some(_)) => continue,
                (OnClash::MakeSpecial, Some(old)) => AddedToken { special: true, ..old.clone() },
            };
            known.insert(token.content.clone(), token.clone());
            wanted.push(token);
        }
        tokenizer.add_tokens(wanted).map_err(|e| e.to_string())?;
        Ok(LoadedTokenizer { tokenizer })
    }

    /// All ids in a row, and where each text's end.
    pub fn encode(&self, mut texts: Vec<Cow<str>>, add_special_tokens: bool) -> Result<(Vec<i32>, Vec<usize>), String> {
        // A lone text is spared the thread pool, which a program that never encodes a batch need not start.
        let encodings = match texts.len() {
            1 => self.tokenizer.encode_fast(texts.remove(0), add_special_tokens).map(|encoding| vec![encoding]),
            _ => self.tokenizer.encode_batch_fast(texts, add_special_tokens),
        }
        .map_err(|e| e.to_string())?;
        let mut ids = Vec::with_capacity(encodings.iter().map(|encoding| encoding.len()).sum());
        let mut ends = Vec::with_capacity(encodings.len());
        for encoding in encodings {
            for &id in encoding.get_ids() {
                ids.push(narrow(id)?);
            }
            ends.push(ids.len());
        }
        Ok((ids, ends))
    }

    pub fn decode(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String, String> {
        let ids: Vec<u32> = ids
            .iter()
            .map(|&id| u32::try_from(id).map_err(|_| format!("{id} is not a token id")))
            .collect::<Result<_, _>>()?;
        self.tokenizer.decode(&ids, skip_special_tokens).map_err(|e| e.to_string())
    }

    pub fn token_id(&self, token: &str) -> Option<i32> {
        self.tokenizer.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    pub fn token(&self, id: i32) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.tokenizer.id_to_token(id))
    }

    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}
