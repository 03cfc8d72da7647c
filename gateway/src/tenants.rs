//! Who shares the gateway: names, and weights for their shares of it.
//!
//! A request names its tenant in the header [`TENANT_HEADER`], over gRPC and over HTTP; one that names none is the default
//! tenant's. There are no keys: a name decides about shares, not about rights.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use asterism_proto::Failure;

use crate::scheduler::TenantId;

/// The HTTP header, and the key in gRPC metadata, that names a request's tenant.
pub const TENANT_HEADER: &str = "x-asterism-tenant";
/// Whose requests are that name no tenant.
pub const DEFAULT_TENANT: &str = "default";

const MOST_TENANTS: usize = 256;
const LONGEST_NAME: usize = 64;
const GREATEST_WEIGHT: u32 = 1000;

/// A tenant as configured: `NAME=WEIGHT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantWeight {
    /// Letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its share, in comparison with the others'.
    pub weight: NonZeroU32,
}

/// Text that is no tenant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// Not of the form NAME=WEIGHT.
    #[error("{0:?} is not of the form NAME=WEIGHT")]
    Form(String),
    /// A name that cannot be one.
    #[error("{0:?} is no name of 1 to {LONGEST_NAME} letters, digits, '-', '_' and '.'")]
    Name(String),
    /// A weight out of range.
    #[error("{0:?} is no weight from 1 to {GREATEST_WEIGHT}")]
    Weight(String),
}

/// All tenants, the default one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenants(Vec<TenantWeight>);

/// Checks that a name can be a tenant's.
///
/// # Errors
/// It cannot.
pub fn check_name(name: &str) -> Result<(), TenantError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_plain);
    if is_name { Ok(()) } else { Err(TenantError::Name(name.to_owned())) }
}

impl FromStr for TenantWeight {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, TenantError> {
        let (name, weight) = text.split_once('=').ok_or_else(|| TenantError::Form(text.to_owned()))?;
        check_name(name)?;
        let in_range = |weight: &NonZeroU32| weight.get() <= GREATEST_WEIGHT;
        let weight = weight.parse().ok().filter(in_range);
        let weight = weight.ok_or_else(|| TenantError::Weight(text[name.len() + 1..].to_owned()))?;
        Ok(Self { name: name.to_owned(), weight })
    }
}

impl fmt::Display for TenantWeight {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.weight)
    }
}

impl Tenants {
    /// Of a configuration; the default tenant has weight 1 unless it is listed.
    pub fn new(configured: &[TenantWeight]) -> Self {
        let (mut first, others): (Vec<_>, Vec<_>) =
            configured.iter().cloned().partition(|tenant| tenant.name == DEFAULT_TENANT);
        if first.is_empty() {
            first.push(TenantWeight { name: DEFAULT_TENANT.to_owned(), weight: NonZeroU32::MIN });
        }
        first.extend(others);
        Self(first)
    }

    /// What is wrong with a configuration.
    pub fn mistakes(configured: &[TenantWeight]) -> Vec<String> {
        let mut mistakes = Vec::new();
        if configured.len() > MOST_TENANTS {
            mistakes.push(format!("tenants: {} are more than {MOST_TENANTS}", configured.len()));
        }
        for (index, tenant) in configured.iter().enumerate() {
            if configured.iter().take(index).any(|other| other.name == tenant.name) {
                mistakes.push(format!("tenants: {} is listed twice", tenant.name));
            }
        }
        mistakes
    }

    /// The tenant of this name, or the default one.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: there is none of this name.
    pub fn find(&self, name: Option<&str>) -> Result<TenantId, Failure> {
        let name = name.unwrap_or(DEFAULT_TENANT);
        let place = self.0.iter().position(|tenant| tenant.name == name);
        let id = place.and_then(|place| u32::try_from(place).ok()).map(TenantId);
        id.ok_or_else(|| {
            let shown: String = name.chars().take(LONGEST_NAME).collect();
            Failure::invalid(TENANT_HEADER, format!("there is no tenant {shown:?}"))
        })
    }

    /// Their weights, by [`TenantId`].
    pub fn weights(&self) -> Vec<NonZeroU32> {
        self.0.iter().map(|tenant| tenant.weight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(texts: &[&str]) -> Vec<TenantWeight> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_default_tenant_comes_first_and_is_always_there() {
        let found = |configured: &[&str], name| Tenants::new(&tenants(configured)).find(name).unwrap();
        assert_eq!(found(&[], None), TenantId(0));
        assert_eq!(found(&["a=3", "b=1"], None), TenantId(0));
        assert_eq!(found(&["a=3", "b=1"], Some("b")), TenantId(2));
        assert_eq!(found(&["a=3", "default=2"], Some("default")), TenantId(0));
        let weights = |configured: &[&str]| {
            let weights = Tenants::new(&tenants(configured)).weights();
            weights.into_iter().map(NonZeroU32::get).collect::<Vec<_>>()
        };
        assert_eq!((weights(&["a=3"]), weights(&["a=3", "default=2"])), (vec![1, 3], vec![2, 3]));
    }

    #[test]
    fn an_unknown_tenant_is_the_callers_mistake() {
        let failure = Tenants::new(&[]).find(Some("x")).unwrap_err();
        assert_eq!(
            (failure.field.as_deref(), &failure.message[..]),
            (Some(TENANT_HEADER), "there is no tenant \"x\"")
        );
    }

    #[test]
    fn what_is_no_tenant_is_refused() {
        let parse = |text: &str| text.parse::<TenantWeight>();
        assert_eq!(parse("a"), Err(TenantError::Form("a".to_owned())));
        for name in ["", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(parse(&format!("{name}=1")), Err(TenantError::Name(name.to_owned())));
        }
        for weight in ["", "0", "-1", "1001", "1.5", "1=2"] {
            assert_eq!(parse(&format!("a={weight}")), Err(TenantError::Weight(weight.to_owned())));
        }
        assert_eq!(Tenants::mistakes(&tenants(&["a=1", "b=1", "a=2"])), ["tenants: a is listed twice"]);
    }
}
