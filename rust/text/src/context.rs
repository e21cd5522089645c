//! The variables of a template, from JSON. `serde_json` alone would do, but for one thing: it reads 17-digit decimals a last bit
//! off unless a feature is on that would also change how tokenizer.json's scores are read, and those must stay what the Python
//! package sees. So numbers are read here, by the standard library, which is exact.

use indexmap::IndexMap;
use minijinja::Value;
use serde::de::Error;
use serde_json::value::RawValue;

/// As deep as `serde_json` itself would go.
const DEEPEST: usize = 128;

pub fn read(json: &[u8]) -> serde_json::Result<Value> {
    value(serde_json::from_slice(json)?, DEEPEST)
}

fn value(raw: &RawValue, levels: usize) -> serde_json::Result<Value> {
    let text = raw.get();
    if levels == 0 {
        return Err(serde_json::Error::custom("nested too deeply"));
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let fields: IndexMap<String, &RawValue> = serde_json::from_str(text)?;
            let pairs: Vec<(String, Value)> =
                fields.into_iter().map(|(key, raw)| Ok((key, value(raw, levels - 1)?))).collect::<serde_json::Result<_>>()?;
            Ok(Value::from_pairs(pairs))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            let items: Vec<Value> = items.into_iter().map(|raw| value(raw, levels - 1)).collect::<serde_json::Result<_>>()?;
            Ok(Value::from(items))
        }
        Some(b'-' | b'0'..=b'9') if text.contains(['.', 'e', 'E']) => text.parse::<f64>().map(Value::from).map_err(Error::custom),
        _ => serde_json::from_str(text),
    }
}
