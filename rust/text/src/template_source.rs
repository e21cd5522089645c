//! What is checked and changed in a template's source before it is compiled. The tokens are those of the engine's own lexer.
//!
//! The engine parses brackets to a fixed depth, but chains (`a+a+a…`, `a|f|f…`, `a.b.b…`, `elif` after `elif`) to any length, and
//! each link is one more level of the tree that its compiler descends. So their length is bounded here.

use minijinja::machinery::{tokenize, Token};
use minijinja::syntax::SyntaxConfig;

/// The longest templates of published models have 20 to 40 kB.
const LARGEST_SOURCE: usize = 1 << 20;
/// Operators, dots, brackets, filters and tests of one tag; templates that were written by people have some dozens.
const LONGEST_CHAIN: usize = 2000;
/// In the whole template: each nests in the one before.
const MOST_ELIFS: usize = 1000;

/// The source as the engine gets it. `guard` is the filter that every value of a `{% set %}` passes through.
pub fn prepare(source: &str, syntax: SyntaxConfig, guard: &str) -> Result<String, String> {
    if source.len() > LARGEST_SOURCE {
        return Err(format!("line 1: a template of {} bytes is more than the {LARGEST_SOURCE} that one may have", source.len()));
    }
    let mut edits = Vec::new();
    let mut tag = Tag::default();
    let mut elifs = 0;
    for token in tokenize(source, false, syntax) {
        // What the lexer refuses the engine will refuse too, in its own words.
        let Ok((token, span)) = token else { break };
        match token {
            Token::VariableStart | Token::BlockStart => tag = Tag::default(),
            Token::BlockEnd => {
                if let Some(word @ ("generation" | "endgeneration")) = tag.only_word {
                    // It marks the assistant's words for a mask of labels that is not wanted here, and renders its body in a scope of
                    // its own, which is what `with` does.
                    edits.push((tag.end - word.len(), tag.end, if word == "generation" { "with".to_owned() } else { "endwith".to_owned() }));
                }
                if let Some(value) = tag.value.filter(|&value| value < tag.end) {
                    edits.push((value, value, "(".to_owned()));
                    edits.push((tag.end, tag.end, format!(")|{guard}({})", tag.in_namespace)));
                }
            }
            _ => {}
        }
        match token {
            Token::Ident("elif") if tag.tokens == 0 => elifs += 1,
            Token::Ident("and" | "or" | "not" | "is" | "in" | "if" | "else") => tag.links += 1,
            Token::Ident(_) | Token::Comma | Token::Colon | Token::Str(_) | Token::String(_) => {}
            Token::Int(_) | Token::Int128(_) | Token::Float(_) | Token::TemplateData(_) => {}
            Token::ParenClose | Token::BracketClose | Token::BraceOpen | Token::BraceClose => {}
            _ => tag.links += 1,
        }
        if tag.links > LONGEST_CHAIN {
            return Err(format!("line {}: an expression of more than {LONGEST_CHAIN} operators is too long", span.start_line));
        }
        if elifs > MOST_ELIFS {
            return Err(format!("line {}: more than {MOST_ELIFS} times elif is too often", span.start_line));
        }
        tag.see(&token, span.end_offset as usize);
    }
    Ok(apply(source, edits))
}

/// What is known of the tag that the lexer is in.
#[derive(Default)]
struct Tag<'a> {
    tokens: usize,
    links: usize,
    only_word: Option<&'a str>,
    is_set: bool,
    in_namespace: bool,
    /// Where the value of a `{% set name = value %}` begins.
    value: Option<usize>,
    /// Where its last token ends.
    end: usize,
}

impl<'a> Tag<'a> {
    fn see(&mut self, token: &Token<'a>, end: usize) {
        match token {
            Token::VariableStart | Token::BlockStart => return,
            Token::Ident(word) if self.tokens == 0 => {
                self.only_word = Some(word);
                self.is_set = *word == "set";
            }
            _ => {
                self.only_word = None;
                match token {
                    Token::Assign if self.is_set && self.value.is_none() => self.value = Some(end),
                    // `{% set name | filter %}` has a body in place of a value.
                    Token::Pipe if self.value.is_none() => self.is_set = false,
                    Token::Dot if self.value.is_none() => self.in_namespace = true,
                    _ => {}
                }
            }
        }
        self.tokens += 1;
        self.end = end;
    }
}

/// The edits are in order and do not overlap.
fn apply(source: &str, edits: Vec<(usize, usize, String)>) -> String {
    let mut out = String::with_capacity(source.len() + 32 * edits.len());
    let mut copied = 0;
    for (start, end, text) in edits {
        out.push_str(&source[copied..start]);
        out.push_str(&text);
        copied = end;
    }
    out.push_str(&source[copied..]);
    out
}
