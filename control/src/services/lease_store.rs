//! The leases of all networks on disk, and the subnets that weft chose, so that they are there after a restart, however weft ended.
//!
//! A thread of its own writes: a disk may take its time, and neither frames nor other requests wait for it. What has come by the time
//! that it gets to it is written with one commit, which is durable (fsync) when it is reported as done.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;

use mio::Waker;
use redb::{Database, DatabaseError, ReadableDatabase, TableDefinition};
use tracing::{error, info};
use weft_switch::Subnet;
use weft_switch::dhcp::{LeaseBook, LeaseChange, LeaseRecord, Ticket};

use crate::values::Name;

/// File name of the leases in the state directory.
pub(crate) const LEASES_FILE: &str = "leases.redb";
/// By network and address (as a number): a [`LeaseRecord`] as JSON.
const LEASES: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("leases");
/// By network: the subnet that weft chose for it, so that it is the same after a restart.
const SUBNETS: TableDefinition<'_, &str, &str> = TableDefinition::new("subnets");
/// The most changes that wait to be written.
const WAITING_MAX: usize = 8192;

/// Leases can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum LeaseStoreError {
    /// The directory can't be made or used.
    #[error("cannot make the state directory {0:?}: {1}; choose another --state-dir")]
    Directory(PathBuf, io::Error),
    /// Another weft has the file.
    #[error("another weft keeps its leases in {0:?}: stop it, or choose another --state-dir")]
    Taken(PathBuf),
    /// Too many changes wait to be written.
    #[error("the disk with {0:?}, where leases are kept, does not keep up: try again later")]
    Busy(PathBuf),
    /// The file can't be read or written.
    #[error(
        "cannot use {path:?}, where leases are kept: {source}; choose another --state-dir, or move that file away and lose the leases"
    )]
    Store {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<redb::Error>,
    },
}

/// The leases on disk.
#[derive(Debug)]
pub(crate) struct LeaseStore {
    path: PathBuf,
    database: Arc<Database>,
    changes: Option<SyncSender<Waiting>>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
}

/// Names one DHCP server, so that nothing is confirmed to another one on a network of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServerId(pub(crate) u64);

/// Up to this ticket, a server's changes are durable, or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) server: ServerId,
    pub(crate) ticket: Ticket,
    pub(crate) done: bool,
}

#[derive(Debug)]
enum Waiting {
    Change {
        server: ServerId,
        network: Name,
        ticket: Ticket,
        change: LeaseChange,
    },
    /// A network has this subnet from now on.
    Subnet(Name, Subnet),
    /// A network is gone, and all that is known of it.
    Forget(Name),
    /// Somebody wants to know when everything before this is written.
    Barrier(Sender<()>),
}

impl LeaseStore {
    /// Opens the store in `directory`, which is made if it is missing; `waker` is woken when something was written.
    pub(crate) fn open(directory: &Path, waker: Arc<Waker>) -> Result<Self, LeaseStoreError> {
        let unusable = |source| LeaseStoreError::Directory(directory.to_owned(), source);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable)?;
        let path = directory.join(LEASES_FILE);
        let database = Database::create(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => LeaseStoreError::Taken(path.clone()),
            other => failed(&path)(other.into()),
        })?;
        let database = Arc::new(database);
        // Makes the table, and shows that the disk can be written.
        write(&database, &[]).map_err(failed(&path))?;
        let (changes, inbox) = sync_channel(WAITING_MAX);
        let (report, written) = channel();
        let store = Arc::clone(&database);
        let thread = std::thread::Builder::new()
            .name("weft-leases".to_owned())
            .spawn(move || write_all(&store, &inbox, &report, &waker))
            .map_err(unusable)?;
        Ok(Self { path, database, changes: Some(changes), written, thread: Some(thread) })
    }

    /// The leases that are written down of a network. Waits until everything that was to be written is.
    pub(crate) fn book(&self, network: &Name) -> Result<LeaseBook, LeaseStoreError> {
        self.settle()?;
        self.read(network).map_err(failed(&self.path))
    }

    /// The subnet that weft chose for a network. Waits as [`Self::book`] does.
    pub(crate) fn subnet(&self, network: &Name) -> Result<Option<Subnet>, LeaseStoreError> {
        self.settle()?;
        let read = || -> Result<Option<Subnet>, redb::Error> {
            let table = self.database.begin_read()?.open_table(SUBNETS)?;
            Ok(table.get(network.as_str())?.and_then(|text| text.value().parse().ok()))
        };
        read().map_err(failed(&self.path))
    }

    fn settle(&self) -> Result<(), LeaseStoreError> {
        let (reached, barrier) = channel();
        if !self.send(Waiting::Barrier(reached)) {
            return Err(LeaseStoreError::Busy(self.path.clone()));
        }
        // An error says that the thread is gone, and so there is nothing to wait for.
        let _ = barrier.recv();
        Ok(())
    }

    fn read(&self, network: &Name) -> Result<LeaseBook, redb::Error> {
        let mut book = LeaseBook::default();
        let table = self.database.begin_read()?.open_table(LEASES)?;
        for row in table.range((network.as_str(), 0)..=(network.as_str(), u32::MAX))? {
            let (key, value) = row?;
            match serde_json::from_slice::<LeaseRecord>(value.value()) {
                Ok(record) => book.apply(LeaseChange::Put(record)),
                Err(error) => {
                    error!("a lease of network {network} is lost, because it can't be read ({:?}): {error}", key.value());
                }
            }
        }
        Ok(book)
    }

    /// Has a change written. False if too many wait, because the disk does not keep up.
    pub(crate) fn write(&self, server: ServerId, network: &Name, ticket: Ticket, change: LeaseChange) -> bool {
        self.send(Waiting::Change { server, network: network.clone(), ticket, change })
    }

    /// Remembers the subnet of a network.
    pub(crate) fn remember(&self, network: &Name, subnet: Subnet) {
        if !self.send(Waiting::Subnet(network.clone(), subnet)) {
            error!("network {network} may have another subnet after a restart: the disk does not keep up");
        }
    }

    /// Forgets all that is known of a network.
    pub(crate) fn forget(&self, network: &Name) {
        if !self.send(Waiting::Forget(network.clone())) {
            error!("the leases of network {network} stay in {}: the disk does not keep up", self.path.display());
        }
    }

    /// What was written since this was last asked.
    pub(crate) fn written(&self) -> Vec<Written> {
        self.written.try_iter().collect()
    }

    fn send(&self, waiting: Waiting) -> bool {
        let Some(changes) = &self.changes else { return false };
        match changes.try_send(waiting) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(_)) => {
                error!("the thread that writes leases has ended");
                false
            }
        }
    }
}

impl Drop for LeaseStore {
    /// Waits until everything is written.
    fn drop(&mut self) {
        self.changes = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that writes leases ended with a panic");
        }
    }
}

fn failed(path: &Path) -> impl Fn(redb::Error) -> LeaseStoreError {
    move |source| LeaseStoreError::Store { path: path.to_owned(), source: Box::new(source) }
}

/// The thread: as long as somebody may send changes, one commit after the other.
fn write_all(database: &Database, inbox: &Receiver<Waiting>, report: &Sender<Written>, waker: &Waker) {
    let mut works = true;
    while let Ok(first) = inbox.recv() {
        let all: Vec<_> = std::iter::once(first).chain(inbox.try_iter()).collect();
        let outcome = write(database, &all);
        // Said when it begins and when it ends: guests ask again and again meanwhile.
        match &outcome {
            Err(error) if works => error!("leases can't be written, so clients get none: {error}"),
            Ok(()) if !works => info!("leases can be written again"),
            _ => {}
        }
        works = outcome.is_ok();
        for waiting in all {
            // Whoever does not listen any more does not wait for it.
            let _ = match waiting {
                Waiting::Change { server, ticket, .. } => report.send(Written { server, ticket, done: outcome.is_ok() }).is_ok(),
                Waiting::Barrier(reached) => reached.send(()).is_ok(),
                Waiting::Subnet(..) | Waiting::Forget(_) => true,
            };
        }
        if let Err(error) = waker.wake() {
            error!("cannot tell that leases are written: {error}");
        }
    }
}

fn write(database: &Database, changes: &[Waiting]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let (mut table, mut subnets) = (transaction.open_table(LEASES)?, transaction.open_table(SUBNETS)?);
        for waiting in changes {
            match waiting {
                Waiting::Change { network, change: LeaseChange::Put(record), .. } => {
                    // A record has nothing that JSON can't hold.
                    let value = serde_json::to_vec(record).unwrap_or_default();
                    table.insert((network.as_str(), record.address.to_bits()), value.as_slice())?;
                }
                Waiting::Change { network, change: LeaseChange::Remove(address), .. } => {
                    table.remove((network.as_str(), address.to_bits()))?;
                }
                Waiting::Subnet(network, subnet) => {
                    subnets.insert(network.as_str(), subnet.to_string().as_str())?;
                }
                Waiting::Forget(network) => {
                    subnets.remove(network.as_str())?;
                    table.retain_in((network.as_str(), 0)..=(network.as_str(), u32::MAX), |_, _| false)?;
                }
                Waiting::Barrier(_) => {}
            }
        }
    }
    // Immediate durability is redb's default: it returns after fsync.
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use mio::{Poll, Token};
    use weft_switch::MacAddr;
    use weft_switch::dhcp::{ClientId, LeaseState, UnixSeconds};

    use super::*;

    const SERVER: ServerId = ServerId(1);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn record(last: u8) -> LeaseRecord {
        let mac = MacAddr([2, 0, 0, 0, 0, last]);
        LeaseRecord {
            address: Ipv4Addr::new(10, 77, 0, last),
            state: LeaseState::Leased,
            client: ClientId::Mac(mac),
            mac,
            port: "vm1".to_owned(),
            hostname: None,
            until: UnixSeconds(1_800_000_000),
        }
    }

    fn open(directory: &Path) -> LeaseStore {
        let poll = Poll::new().unwrap();
        LeaseStore::open(directory, Arc::new(Waker::new(poll.registry(), Token(0)).unwrap())).unwrap()
    }

    fn wait_for(store: &LeaseStore, ticket: Ticket) {
        let until = Instant::now() + Duration::from_secs(10);
        let mut last = Written { server: SERVER, ticket: Ticket(0), done: true };
        while last.ticket < ticket {
            let left = until.saturating_duration_since(Instant::now());
            last = store.written.recv_timeout(left).expect("it is written");
            assert!(last.done && last.server == SERVER);
        }
    }

    #[test]
    fn what_is_confirmed_is_there_when_it_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let (lab, other) = (name("lab"), name("lab-2"));
        let store = open(&directory.path().join("a/b"));
        for last in 10..20 {
            assert!(store.write(SERVER, &lab, Ticket(last.into()), LeaseChange::Put(record(last))));
        }
        store.write(SERVER, &other, Ticket(21), LeaseChange::Put(record(50)));
        store.write(SERVER, &lab, Ticket(22), LeaseChange::Remove(Ipv4Addr::new(10, 77, 0, 15)));
        wait_for(&store, Ticket(22));
        drop(store);
        let store = open(&directory.path().join("a/b"));
        let addresses =
            |network| store.book(network).unwrap().records().map(|record| record.address.octets()[3]).collect::<Vec<_>>();
        assert_eq!(addresses(&lab), [10, 11, 12, 13, 14, 16, 17, 18, 19]);
        assert_eq!(addresses(&other), [50]);
        store.forget(&lab);
        store.write(SERVER, &other, Ticket(1), LeaseChange::Put(record(51)));
        assert_eq!((addresses(&lab), addresses(&other)), (vec![], vec![50, 51]));
        let subnet = "10.77.3.0/24".parse().unwrap();
        store.remember(&lab, subnet);
        assert_eq!((store.subnet(&lab).unwrap(), store.subnet(&other).unwrap()), (Some(subnet), None));
        store.forget(&lab);
        assert_eq!(store.subnet(&lab).unwrap(), None);
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let _open = open(directory.path());
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let refused = |path: &Path| LeaseStore::open(path, Arc::clone(&waker)).unwrap_err().to_string();
        assert!(refused(directory.path()).contains("another weft keeps its leases"));
        assert!(refused(&directory.path().join(LEASES_FILE)).contains("cannot make the state directory"));
        let broken = directory.path().join("broken");
        std::fs::create_dir(&broken).unwrap();
        std::fs::write(broken.join(LEASES_FILE), [7; 10_000]).unwrap();
        assert!(refused(&broken).contains("move that file away"));
    }
}
