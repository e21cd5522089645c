//! The front matter of a model card: YAML between two lines of three dashes at the very start.

use serde_json::{Map, Value};

/// As JSON; an empty object when there is none.
pub fn front_matter(text: &str) -> Result<String, String> {
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let empty = Value::Object(Map::new());
    let Some(yaml) = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---").map(|(yaml, _)| yaml)) else {
        return Ok(empty.to_string());
    };
    match serde_norway::from_str(yaml) {
        Ok(Value::Null) => Ok(empty.to_string()),
        Ok(value @ Value::Object(_)) => Ok(value.to_string()),
        Ok(_) => Err("the card's front matter is not a list of keys; mend the YAML between its two lines of ---".into()),
        Err(e) => {
            // The parser counts from the line behind the first ---.
            let place = e.location().map_or_else(|| "its parts contradict each other".to_owned(), |at| format!("line {}, column {}", at.line() + 1, at.column()));
            Err(format!("the card's front matter is no valid YAML ({place}); mend what stands between its two lines of ---"))
        }
    }
}
