//! tokenizer.json describes a small program: steps that rewrite a text before it is cut into tokens, and steps that put tokens
//! together again. Files come from strangers, and forty steps that double every "a" ask for more memory than there is. The
//! crate has no limit, so its normalizer and decoder are taken here one step at a time, and the text is measured in between.
//! What else can grow is refused when the file is read.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::utils::SysRegex;
use tokenizers::{Decoder, DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper, Result};

/// Steps in one chain. The longest in use have some twenty.
const MOST_STEPS: usize = 1000;
/// Bytes that one step may write in place of what it found: a blank, a quote, a word.
const LONGEST_CONTENT: usize = 1024;
/// `ByteLevel` makes two bytes of each that is not ASCII; in use is one of them, and two would be a mistake.
const MOST_BYTE_LEVELS: usize = 4;
/// Parts of a post-processor's templates that stand for the text itself; in use are one for a single text and two for a pair.
const MOST_SEQUENCES: usize = 16;
/// Parts of them all.
const MOST_PIECES: usize = 256;

/// How long a text of `bytes` may become. Compatibility forms grow elevenfold at the most (U+FDFA in NFKD), and few texts consist
/// of them, so long ones may grow less; blanks that become "▁" grow threefold.
fn longest(bytes: usize) -> usize {
    const SMALL: usize = 64 << 10;
    const LARGE: usize = 16 << 20;
    SMALL + bytes.saturating_mul(4).max(bytes.saturating_mul(16).min(LARGE))
}

/// The panic that ends an encoding. The crate drops a normalizer's errors and would go on with half a normalization.
pub struct Refusal(pub &'static str);

const GROWN: &str = "its steps make a text far longer than it was";

/// What a `Replace` step writes, known in advance.
struct Replacement {
    pattern: SysRegex,
    content: usize,
}

impl Replacement {
    fn of(step: &Value) -> std::result::Result<Option<Self>, String> {
        if step["type"] != "Replace" {
            return Ok(None);
        }
        let pattern = match (&step["pattern"]["String"], &step["pattern"]["Regex"]) {
            (Value::String(text), _) => SysRegex::new(&escaped(text)),
            (_, Value::String(regex)) => SysRegex::new(regex),
            _ => return Ok(None), // the crate says what is wrong with it
        };
        let content = step["content"].as_str().map_or(0, str::len);
        if content > LONGEST_CONTENT {
            return Err(format!("a Replace step writes {content} bytes in place of each match, and {LONGEST_CONTENT} is the most"));
        }
        pattern.map(|pattern| Some(Replacement { pattern, content })).map_err(|e| e.to_string())
    }

    /// Whether the result stays within `most` bytes. Matches are counted only where their number could matter.
    fn fits(&self, text: &str, most: usize) -> bool {
        if text.len() + (text.len() + 1) * self.content <= most {
            return true;
        }
        let room = most.saturating_sub(text.len()) / self.content.max(1);
        self.pattern.find_iter(text).nth(room).is_none()
    }
}

/// A text as a pattern that matches just it.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| r"\.+*?()|[]{}^$#&-~".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

struct Step<T> {
    work: T,
    replacement: Option<Replacement>,
    added: usize, // bytes that the step may put before a text
}

/// The steps of a chain, which may hold chains.
fn steps<T: for<'a> Deserialize<'a>>(value: Value, list: &str, out: &mut Vec<Step<T>>) -> std::result::Result<(), String> {
    if value["type"] == "Sequence" && value[list].is_array() {
        let Value::Object(mut fields) = value else { return Ok(()) };
        let Some(Value::Array(parts)) = fields.remove(list) else { return Ok(()) };
        return parts.into_iter().try_for_each(|part| steps(part, list, out));
    }
    if out.len() == MOST_STEPS {
        return Err(format!("more than {MOST_STEPS} steps in one of its chains"));
    }
    check_charsmap(&value)?;
    let replacement = Replacement::of(&value)?;
    let added = value["prepend"].as_str().map_or(0, str::len);
    if added > LONGEST_CONTENT {
        return Err(format!("a Prepend step writes {added} bytes before each text, and {LONGEST_CONTENT} is the most"));
    }
    out.push(Step { work: T::deserialize(value).map_err(|e| e.to_string())?, replacement, added });
    Ok(())
}

/// The map of a `Precompiled` step begins with the length that its tables have, for which the crate reserves memory before it
/// reads them; then come the texts that it writes, each ended by a zero.
fn check_charsmap(step: &Value) -> std::result::Result<(), String> {
    let Some(text) = step["precompiled_charsmap"].as_str() else { return Ok(()) };
    let map = base64::decode(text).map_err(|_| "precompiled_charsmap is not base64".to_owned())?;
    let (Some(length), Some(rest)) = (map.first_chunk::<4>(), map.get(4..)) else {
        return Err("precompiled_charsmap is cut short".into());
    };
    let length = u32::from_le_bytes(*length) as usize;
    let Some(texts) = rest.get(length..) else {
        return Err(format!("precompiled_charsmap claims {length} bytes of tables and holds {}", rest.len()));
    };
    if length < 4 {
        return Err("precompiled_charsmap has no table".into());
    }
    match texts.split(|&byte| byte == 0).map(<[u8]>::len).max() {
        Some(most) if most > LONGEST_CONTENT => Err(format!("precompiled_charsmap writes {most} bytes at once, and {LONGEST_CONTENT} is the most")),
        _ => Ok(()),
    }
}

pub struct BoundedNormalizer(Vec<Step<NormalizerWrapper>>);

impl<'de> Deserialize<'de> for BoundedNormalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut out = Vec::new();
        steps(Value::deserialize(deserializer)?, "normalizers", &mut out).map_err(D::Error::custom)?;
        Ok(BoundedNormalizer(out))
    }
}

impl Normalizer for BoundedNormalizer {
    fn normalize(&self, text: &mut NormalizedString) -> Result<()> {
        let most = longest(text.get().len());
        for step in &self.0 {
            let fits = step.replacement.as_ref().is_none_or(|replacement| replacement.fits(text.get(), most));
            if !fits || text.get().len() + step.added > most {
                std::panic::resume_unwind(Box::new(Refusal(GROWN)));
            }
            step.work.normalize(text)?;
        }
        Ok(())
    }
}

pub struct BoundedDecoder(Vec<Step<DecoderWrapper>>);

impl<'de> Deserialize<'de> for BoundedDecoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut out = Vec::new();
        steps(Value::deserialize(deserializer)?, "decoders", &mut out).map_err(D::Error::custom)?;
        Ok(BoundedDecoder(out))
    }
}

impl Decoder for BoundedDecoder {
    fn decode_chain(&self, mut tokens: Vec<String>) -> Result<Vec<String>> {
        let length = |tokens: &[String]| tokens.iter().map(String::len).sum::<usize>();
        let most = longest(length(&tokens));
        for step in &self.0 {
            if let Some(replacement) = &step.replacement {
                let mut left = most;
                for token in &tokens {
                    if !replacement.fits(token, left) {
                        return Err(GROWN.into());
                    }
                    left = left.saturating_sub(token.len());
                }
            }
            tokens = step.work.decode_chain(tokens)?;
            if length(&tokens) > most {
                return Err(GROWN.into());
            }
        }
        Ok(tokens)
    }
}

/// The parts of tokenizer.json that are not taken step by step.
#[derive(Deserialize)]
struct Rest {
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// Refuses what would grow in the other parts. What cannot be read here is left for the crate to refuse.
pub fn check(json: &[u8]) -> std::result::Result<(), String> {
    let Ok(rest) = serde_json::from_slice::<Rest>(json) else { return Ok(()) };
    let (mut steps, mut byte_levels, mut pieces, mut sequences) = (0, 0, 0, 0);
    each_object(&rest.pre_tokenizer, &mut |object| {
        steps += usize::from(object.contains_key("type"));
        byte_levels += usize::from(object.get("type").is_some_and(|kind| kind == "ByteLevel"));
    });
    each_object(&rest.post_processor, &mut |object| {
        steps += usize::from(object.contains_key("type"));
        for name in ["single", "pair", "ids"] {
            pieces += object.get(name).and_then(Value::as_array).map_or(0, Vec::len);
            // Written as a text, a template names the texts by "$".
            sequences += object.get(name).and_then(Value::as_str).map_or(0, |text| text.matches('$').count());
        }
        sequences += usize::from(object.contains_key("Sequence"));
    });
    if steps > MOST_STEPS {
        return Err(format!("more than {MOST_STEPS} steps in its pre_tokenizer and post_processor"));
    }
    if byte_levels > MOST_BYTE_LEVELS {
        return Err(format!("more than {MOST_BYTE_LEVELS} ByteLevel steps in its pre_tokenizer"));
    }
    if sequences > MOST_SEQUENCES || pieces > MOST_PIECES {
        return Err("its post_processor repeats the text too often".into());
    }
    Ok(())
}

fn each_object(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            visit(fields);
            fields.values().for_each(|field| each_object(field, visit));
        }
        Value::Array(items) => items.iter().for_each(|item| each_object(item, visit)),
        _ => {}
    }
}
