//! Kernels that are compiled when the first pool needs them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use crate::TensorError;

/// Kernels by what they are compiled for.
#[derive(Debug)]
pub struct OnDemand<K, V>(Mutex<HashMap<K, Arc<V>>>);

impl<K, V> Default for OnDemand<K, V> {
    fn default() -> Self {
        OnDemand(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash, V> OnDemand<K, V> {
    /// Those for `key`, made by `make` the first time.
    pub fn get(&self, key: K, make: impl FnOnce() -> Result<V, TensorError>) -> Result<Arc<V>, TensorError> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = made.get(&key) {
            return Ok(Arc::clone(kernels));
        }
        let kernels = Arc::new(make()?);
        made.insert(key, Arc::clone(&kernels));
        Ok(kernels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_made_once_and_a_failure_is_not_kept() {
        let kernels = OnDemand::default();
        assert!(kernels.get(1, || Err(TensorError::OtherDevice)).is_err());
        let first = kernels.get(1, || Ok("first")).unwrap();
        assert!(Arc::ptr_eq(&first, &kernels.get(1, || Ok("again")).unwrap()));
        assert_eq!(*kernels.get(2, || Ok("second")).unwrap(), "second");
    }
}
