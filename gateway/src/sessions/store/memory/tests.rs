use super::*;
use crate::sessions::store::suite::{Bed, store_suite};

impl Bed for MemoryStore {
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.clone().restarted())
    }
}

store_suite!(MemoryStore::default());
