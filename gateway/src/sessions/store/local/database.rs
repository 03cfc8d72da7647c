//! Opening the database: an error says what is wrong, and nothing was changed.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, StorageBackend, TableError};

use super::error::{Failure, OpenError};
use super::overlay::Overlay;
use super::tables::{ABOUT, FORMAT, FORMAT_KEY, ReadTables, Tables};
use crate::sessions::store::StoreError;

/// The database's file in a store's folder, and its name while it is made.
const FILE: &str = "sessions.redb";
const UNFINISHED: &str = "sessions.redb.new";

/// What the database may hold of its pages in memory.
const CACHE_BYTES: usize = 256 << 20;

/// The file in `folder`, which no other process uses, made where there is none.
///
/// # Errors
/// [`OpenError::Unusable`].
pub fn open_file(folder: &Path) -> Result<(String, Arc<dyn StorageBackend>), OpenError> {
    let (path, unfinished) = (folder.join(FILE), folder.join(UNFINISHED));
    let exists = path.try_exists().map_err(|error| unusable(&path, error))?;
    if !exists {
        // A process may be killed while it makes one, and a part of one cannot be told from a damaged one.
        make(&unfinished)?;
        std::fs::rename(&unfinished, &path).map_err(|error| unusable(&path, error))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| unusable(folder, error))?;
    }
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|error| unusable(&path, error))?;
    Ok((
        path.display().to_string(),
        Arc::new(FileBackend::new(file).map_err(|error| unusable(&path, error))?),
    ))
}

fn make(path: &Path) -> Result<(), OpenError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = FileBackend::new(file.map_err(|error| unusable(path, error))?);
    let disk: Arc<dyn StorageBackend> = Arc::new(file.map_err(|error| unusable(path, error))?);
    let opened = Opened::open(&disk).map_err(|failure| unusable(path, StoreError::from(failure)))?;
    opened.overlay.go_through(true);
    Ok(())
}

/// A file, or a folder, that cannot be used.
pub fn unusable(path: &Path, why: impl std::fmt::Display) -> OpenError {
    OpenError::Unusable { file: path.display().to_string(), why: why.to_string() }
}

/// An open database. It writes into its overlay.
#[derive(Debug)]
pub struct Opened {
    /// The database.
    pub database: Arc<Database>,
    /// What it writes into.
    pub overlay: Overlay,
}

/// The database at one moment.
pub struct Snapshot {
    // Before the database, which must outlive it.
    read: ReadTransaction,
    _database: Arc<Database>,
}

/// Looks whether all that lies in a disk, called `file`, is whole and understood; it changes nothing. Where it is not, `journal`
/// tells how that is.
///
/// # Errors
/// [`OpenError::Unusable`], [`OpenError::Damaged`], [`OpenError::Newer`].
pub fn check(
    file: &str,
    disk: &Arc<dyn StorageBackend>,
    journal: impl Fn() -> String,
) -> Result<(), OpenError> {
    let unusable = |why: String| OpenError::Unusable { file: file.to_owned(), why };
    let damaged = |why: String| OpenError::Damaged { file: file.to_owned(), why, journal: journal() };
    if disk.len().map_err(|error| unusable(error.to_string()))? == 0 {
        return Ok(());
    }
    let overlay = Overlay::new(Arc::clone(disk)).map_err(|error| unusable(error.to_string()))?;
    let database = builder(true).create_with_backend(overlay).map_err(|error| damaged(error.to_string()))?;
    let format = format(&database).map_err(|failure| match failure {
        Failure::Damaged(why) | Failure::Lost(why) => damaged(why),
        Failure::Refused(error) => damaged(error.to_string()),
    })?;
    match format {
        Some(found) if found > FORMAT => {
            Err(OpenError::Newer { file: file.to_owned(), found, known: FORMAT })
        }
        _ => Ok(()),
    }
}

impl Opened {
    /// Opens what [`check`] has found whole, or makes it, and repairs what a killed process left.
    ///
    /// # Errors
    /// [`Failure::Lost`], [`Failure::Damaged`].
    pub fn open(disk: &Arc<dyn StorageBackend>) -> Result<Self, Failure> {
        let overlay = Overlay::new(Arc::clone(disk)).map_err(|error| Failure::Lost(error.to_string()))?;
        // A repair is several commits, each of which must be on the disk before the next.
        overlay.go_through(true);
        let database = builder(false).create_with_backend(overlay.clone())?;
        if format(&database)?.is_none() {
            let transaction = database.begin_write()?;
            transaction.open_table(ABOUT)?.insert(FORMAT_KEY, FORMAT)?;
            Tables::open(&transaction)?;
            transaction.commit()?;
        }
        overlay.go_through(false);
        Ok(Self { database: Arc::new(database), overlay })
    }

    /// What can be read now.
    ///
    /// # Errors
    /// [`Failure::Lost`], [`Failure::Damaged`].
    pub fn snapshot(&self) -> Result<Snapshot, Failure> {
        Ok(Snapshot { read: self.database.begin_read()?, _database: Arc::clone(&self.database) })
    }
}

impl Snapshot {
    /// What is read from.
    ///
    /// # Errors
    /// [`Failure::Lost`], [`Failure::Damaged`].
    pub fn tables(&self) -> Result<ReadTables, Failure> {
        Ok(ReadTables::open(&self.read)?)
    }
}

fn builder(check: bool) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    builder
}

/// The format that the database has; `None`: it is empty.
fn format(database: &Database) -> Result<Option<u64>, Failure> {
    match database.begin_read()?.open_table(ABOUT) {
        Ok(about) => Ok(about.get(FORMAT_KEY)?.map(|format| format.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
