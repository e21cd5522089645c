//! Rows of Parquet files as JSON. A row group at a time is in memory, and of a file on the hub only the footer and the row groups that are
//! asked for are fetched, each by one request.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::{Buf, Bytes};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::reader::RowIter;
use serde::{Deserialize, Serialize};

use crate::Events;

/// Bytes of a file, wherever it is.
pub trait Source: Send + Sync {
    fn size(&self) -> u64;
    fn read(&self, range: Range<u64>) -> Result<Bytes, String>;
}

/// What most footers fit in, so that one request brings the footer and its length.
const FOOTER: u64 = 64 << 10;
/// The reader asks for pages' headers byte by byte; outside of a prefetched range it gets this much at once.
const STEP: u64 = 64 << 10;

/// The reader's view of a source: what was fetched last, and a way to more.
struct Window<S: Source> {
    source: S,
    held: Mutex<(u64, Bytes)>,
}

impl<S: Source> Window<S> {
    fn hold(&self, range: Range<u64>) -> Result<(), ParquetError> {
        let bytes = self.source.read(range.clone()).map_err(ParquetError::General)?;
        *self.held.lock().unwrap() = (range.start, bytes);
        Ok(())
    }

    fn get(&self, start: u64, length: u64) -> Result<Bytes, ParquetError> {
        let (begin, bytes) = &*self.held.lock().unwrap();
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.source.size())
            .ok_or_else(|| ParquetError::EOF("a part beyond the file's end".into()))?;
        if start >= *begin && end <= begin + bytes.len() as u64 {
            let at = (start - begin) as usize;
            return Ok(bytes.slice(at..at + length as usize));
        }
        self.source.read(start..end).map_err(ParquetError::General)
    }
}

/// Shared between the reader, which owns what it reads from, and us, who prefetch.
struct Shared<S: Source>(std::sync::Arc<Window<S>>);

impl<S: Source> Length for Shared<S> {
    fn len(&self) -> u64 {
        self.0.source.size()
    }
}

impl<S: Source + 'static> ChunkReader for Shared<S> {
    type T = Stream<S>;
    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(Stream { window: self.0.clone(), at: start, bytes: Bytes::new() })
    }
    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.0.get(start, length as u64)
    }
}

struct Stream<S: Source> {
    window: std::sync::Arc<Window<S>>,
    at: u64,
    bytes: Bytes,
}

impl<S: Source> Read for Stream<S> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.bytes.is_empty() {
            let length = STEP.min(self.window.source.size().saturating_sub(self.at));
            if length == 0 {
                return Ok(0);
            }
            // Within what is held, never past its end, which would be a request for what may not be needed.
            let held_to = {
                let (begin, bytes) = &*self.window.held.lock().unwrap();
                if self.at >= *begin { (begin + bytes.len() as u64).saturating_sub(self.at) } else { 0 }
            };
            let length = if held_to > 0 { length.min(held_to) } else { length };
            self.bytes = self.window.get(self.at, length).map_err(std::io::Error::other)?;
            self.at += length;
        }
        let size = self.bytes.len().min(out.len());
        self.bytes.copy_to_slice(&mut out[..size]);
        Ok(size)
    }
}

pub struct Table<S: Source + 'static> {
    window: std::sync::Arc<Window<S>>,
    reader: SerializedFileReader<Shared<S>>,
}

impl<S: Source + 'static> Table<S> {
    pub fn open(source: S) -> Result<Self, String> {
        let size = source.size();
        let window = std::sync::Arc::new(Window { source, held: Mutex::new((0, Bytes::new())) });
        window.hold(size.saturating_sub(FOOTER)..size).map_err(|e| e.to_string())?;
        let reader = SerializedFileReader::new(Shared(window.clone())).map_err(|e| format!("is no sound Parquet file ({e})"))?;
        Ok(Table { window, reader })
    }

    /// Rows of each row group.
    pub fn groups(&self) -> Vec<usize> {
        self.reader.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as usize).collect()
    }

    /// Where a group's columns lie, from the first to the last.
    fn range_of(&self, group: usize) -> Range<u64> {
        let columns = self.reader.metadata().row_group(group).columns().iter().map(|column| column.byte_range());
        let (begin, end) = columns.fold((u64::MAX, 0), |(begin, end), (start, length)| (begin.min(start), end.max(start.saturating_add(length))));
        begin..end.min(self.window.source.size())
    }

    pub fn bytes_of(&self, group: usize) -> u64 {
        let range = self.range_of(group);
        range.end.saturating_sub(range.start)
    }

    /// Writes rows of a group, of which `wanted` says which (ascending; all when `None`), as JSON, a line each.
    pub fn write(&self, group: usize, wanted: Option<&[usize]>, out: &mut impl Write) -> Result<usize, String> {
        let broken = |e: ParquetError| format!("its row group {} cannot be read ({e})", group + 1);
        let range = self.range_of(group);
        if !range.is_empty() {
            self.window.hold(range).map_err(broken)?;
        }
        let reader = self.reader.get_row_group(group).map_err(broken)?;
        let rows = RowIter::from_row_group(None, reader.as_ref()).map_err(broken)?;
        let mut next = wanted.map(|wanted| wanted.iter().copied().peekable());
        let mut written = 0;
        for (index, row) in rows.enumerate() {
            let row = row.map_err(broken)?;
            if let Some(next) = &mut next {
                match next.peek() {
                    None => break,
                    Some(&wanted) if wanted != index => continue,
                    Some(_) => drop(next.next()),
                }
            }
            let line = serde_json::to_string(&row.to_json_value()).map_err(|e| e.to_string())?;
            writeln!(out, "{line}").map_err(|e| e.to_string())?;
            written += 1;
        }
        Ok(written)
    }
}

struct LocalFile(std::fs::File, u64);

impl Source for LocalFile {
    fn size(&self) -> u64 {
        self.1
    }
    fn read(&self, range: Range<u64>) -> Result<Bytes, String> {
        let mut buffer = vec![0u8; (range.end - range.start) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut buffer, range.start).map_err(|e| e.to_string())?;
        Ok(buffer.into())
    }
}

#[derive(Deserialize)]
pub struct Request {
    file: PathBuf,
}

#[derive(Serialize)]
pub struct Answer {
    file: PathBuf,
}

pub fn convert(request: Request, events: Events) -> Result<Answer, String> {
    let said = |path: &PathBuf, e: std::io::Error| format!("{}: {e}; check the path and the room there", path.display());
    let about = |e: String| format!("{}: {e}; make or download the file again", request.file.display());
    // Named by the file's own bytes, so that it is made once and never mistaken for another.
    let hash = crate::download::sha256(&request.file).map_err(|e| said(&request.file, e))?;
    // The file's own name comes last: what is said of a row of the copy names the file that it came from.
    let folder = hf_hub::hf_home().join("lquant").join("parquet").join(hash);
    let mut name = request.file.file_name().unwrap_or_default().to_os_string();
    name.push(".jsonl");
    let to = folder.join(name);
    if to.exists() {
        return Ok(Answer { file: to });
    }
    let file = std::fs::File::open(&request.file).map_err(|e| said(&request.file, e))?;
    let size = file.metadata().map_err(|e| said(&request.file, e))?.len();
    let table = Table::open(LocalFile(file, size)).map_err(about)?;
    std::fs::create_dir_all(&folder).map_err(|e| said(&folder, e))?;
    let growing = to.with_extension("partial");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&growing).map_err(|e| said(&growing, e))?);
    for group in 0..table.groups().len() {
        table.write(group, None, &mut out).map_err(about)?;
        if !events.report("", 0, 0) {
            return Err(crate::session::INTERRUPTED.into());
        }
    }
    out.flush().map_err(|e| said(&growing, e))?;
    std::fs::rename(&growing, &to).map_err(|e| said(&to, e))?;
    Ok(Answer { file: to })
}
