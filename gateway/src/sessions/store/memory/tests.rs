use futures::future::BoxFuture;

use super::*;
use crate::sessions::store::suite::{Bed, store_suite};

impl Bed for MemoryStore {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let store: Arc<dyn Store> = Arc::new(self.clone().restarted());
        futures::future::ready(store).boxed()
    }
}

store_suite!(MemoryStore::default());
