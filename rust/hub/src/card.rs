//! The front matter of a model card: YAML between two lines of three dashes at the very start.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Events;

#[derive(Deserialize)]
pub struct Request {
    text: String,
}

pub fn front_matter(request: Request, _: Events) -> Result<Value, String> {
    let text = request.text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let Some(yaml) = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---").map(|(yaml, _)| yaml)) else {
        return Ok(Value::Object(Map::new()));
    };
    match serde_norway::from_str(yaml) {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("the card's front matter is not a list of keys; mend the YAML between its two lines of ---".into()),
        Err(e) => Err(format!("the card's front matter is no valid YAML ({e}); mend what stands between its two lines of ---")),
    }
}
