//! The cost table as a file of the engine directory: `costs/<device-key>.json`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Cost, CostTable, Grid, Row};

/// Version of the file's form.
const SCHEMA_VERSION: u32 = 1;
/// Largest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// What is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTable {
    /// Version of this form.
    pub schema_version: u32,
    /// What the costs hold for, in words; compared as a whole.
    pub device: Vec<(String, String)>,
    /// The buckets.
    pub grid: Grid,
    /// Sections measured for each bucket.
    pub num_samples: u32,
    /// A row for each bucket, in the order of [`Grid::shapes`].
    pub rows: Vec<Row>,
}

/// Why a stored table cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StoredTableError {
    /// Reading or writing failed.
    #[error("cost table {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a cost table of this version.
    #[error("cost table {path}: {fact}; measure again with `takt calibrate`")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        fact: String,
    },
}

impl StoredTable {
    /// What `table` was calibrated with.
    #[must_use]
    pub fn of(table: &CostTable, device: Vec<(String, String)>, num_samples: u32) -> Self {
        let ns = |cost: Duration| u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        let rows = table.rows().map(|(shape, cost, _)| Row {
            kind: shape.kind,
            size: shape.size,
            context_len: shape.context_len,
            p50_ns: ns(cost.p50),
            p99_ns: ns(cost.p99),
            worst_ns: ns(cost.worst),
        });
        Self {
            schema_version: SCHEMA_VERSION,
            device,
            grid: table.grid().clone(),
            num_samples,
            rows: rows.collect(),
        }
    }

    /// The table to plan with.
    #[must_use]
    pub fn table(&self) -> CostTable {
        let ns = Duration::from_nanos;
        let costs: Vec<Cost> = self
            .rows
            .iter()
            .map(|row| Cost { p50: ns(row.p50_ns), p99: ns(row.p99_ns), worst: ns(row.worst_ns) })
            .collect();
        CostTable::new(self.grid.clone(), &costs)
    }

    /// The file of `key` in the engine directory `engine_dir`.
    #[must_use]
    pub fn path(engine_dir: &Path, key: &str) -> PathBuf {
        engine_dir.join("costs").join(format!("{key}.json"))
    }

    /// Reads `path`; `None` when there is no such file.
    ///
    /// # Errors
    /// [`StoredTableError`] when it cannot be read or is no cost table.
    pub fn read(path: &Path) -> Result<Option<Self>, StoredTableError> {
        let io = |source| StoredTableError::Io { path: path.to_owned(), source };
        let invalid = |fact: String| StoredTableError::Invalid { path: path.to_owned(), fact };
        let num_bytes = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        if num_bytes > MAX_BYTES {
            return Err(invalid(format!("{num_bytes} bytes, expected at most {MAX_BYTES}")));
        }
        let table: Self = serde_json::from_slice(&fs::read(path).map_err(io)?)
            .map_err(|error| invalid(error.to_string()))?;
        table.check().map_err(invalid)?;
        Ok(Some(table))
    }

    fn check(&self) -> Result<(), String> {
        if self.schema_version != SCHEMA_VERSION {
            return Err(format!("version {}, expected {SCHEMA_VERSION}", self.schema_version));
        }
        if !self.grid.is_valid() {
            return Err("bucket bounds that do not ascend from 1".into());
        }
        let expected: Vec<_> =
            self.grid.shapes().map(|shape| (shape.kind, shape.size, shape.context_len)).collect();
        let found: Vec<_> = self.rows.iter().map(|row| (row.kind, row.size, row.context_len)).collect();
        if found != expected {
            return Err(format!("{} rows that do not match its {} buckets", found.len(), expected.len()));
        }
        match self
            .rows
            .iter()
            .find(|row| row.p50_ns == 0 || row.p50_ns > row.p99_ns || row.p99_ns > row.worst_ns)
        {
            Some(row) => Err(format!(
                "a {} row of size {} with p50 {}, p99 {}, worst {} ns: expected them to ascend from 1",
                row.kind.name(),
                row.size,
                row.p50_ns,
                row.p99_ns,
                row.worst_ns
            )),
            None => Ok(()),
        }
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`StoredTableError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), StoredTableError> {
        let io = |source| StoredTableError::Io { path: path.to_owned(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io)?;
        let mut partial = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
        serde_json::to_writer_pretty(&mut partial, self).map_err(|error| io(error.into()))?;
        partial.write_all(b"\n").map_err(io)?;
        partial.as_file().sync_all().map_err(io)?;
        partial.persist(path).map_err(|error| io(error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> StoredTable {
        let costs: Vec<Cost> = (1..).map(|i| Cost::exactly(Duration::from_micros(i))).take(100).collect();
        let table = CostTable::new(Grid::of(64, 4, 1024), &costs);
        StoredTable::of(&table, vec![("cpu".into(), "a processor".into())], 200)
    }

    #[test]
    fn a_table_comes_back_from_its_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = StoredTable::path(folder.path(), "key");
        assert!(StoredTable::read(&path).unwrap().is_none());
        stored().write(&path).unwrap();
        let read = StoredTable::read(&path).unwrap().unwrap();
        assert_eq!(read, stored());
        assert_eq!(StoredTable::of(&read.table(), read.device.clone(), 200), read);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_file_that_is_no_table_is_refused_with_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.json");
        let reason = |edit: &dyn Fn(&mut StoredTable)| {
            let mut table = stored();
            edit(&mut table);
            table.write(&path).unwrap();
            StoredTable::read(&path).unwrap_err().to_string()
        };
        assert!(reason(&|table| table.schema_version = 9).contains("version 9, expected 1"));
        assert!(
            reason(&|table| {
                table.rows.pop();
            })
            .contains("rows that do not match")
        );
        assert!(reason(&|table| table.grid.context_lens = vec![]).contains("do not ascend"));
        assert!(reason(&|table| table.rows[3].p99_ns = 0).contains("expected them to ascend"));
        fs::write(&path, b"{\"schema_version\":1").unwrap();
        assert!(StoredTable::read(&path).unwrap_err().to_string().contains("takt calibrate"));
    }
}
