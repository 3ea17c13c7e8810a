//! Which server is the primary of which buckets.
//!
//! In: the configured addresses, and in a cluster those that it named before. Out: primaries, each with its buckets.
//! Invariant: nothing is remembered between two looks but addresses; who is asked says what is true now.

use std::collections::BTreeMap;

use redis::{Value, cmd};
use ringway_engine::backplane::Buckets;
use ringway_engine::ids::Bucket;
use ringway_engine::limits::BUCKETS;

use super::config::{Address, BackplaneConfig, Login, Mode};
use super::link::{Link, Reason, number, text, within};
use super::{opening, tags};

/// Primaries and their buckets.
pub(super) type Topology = BTreeMap<Address, Box<Buckets>>;

/// Looks. `known` are servers of a cluster that were named before; they are asked first.
///
/// # Errors
/// Why nobody could say.
pub(super) async fn look(config: &BackplaneConfig, known: &[Address]) -> Result<Topology, Reason> {
    let mut reasons = Vec::new();
    let asked = known.iter().chain(config.addresses.iter().filter(|address| !known.contains(address)));
    for address in asked {
        let found = match config.mode {
            Mode::Single => opening::primary(config, address).await.map(|_| everything(address.clone())),
            Mode::Sentinel => sentinel(config, address).await.map(everything),
            Mode::Cluster => cluster(config, address).await,
        };
        match found {
            Ok(topology) => return Ok(topology),
            Err(reason) => reasons.push(format!("{address}: {reason}")),
        }
    }
    Err(reasons.join("; "))
}

fn everything(address: Address) -> Topology {
    BTreeMap::from([(address, Box::new(Buckets::ALL))])
}

/// Asks a sentinel who the primary is.
async fn sentinel(config: &BackplaneConfig, address: &Address) -> Result<Address, Reason> {
    let mut link = Link::open(address, &Login::default(), config.timeout()).await?;
    let mut ask = cmd("SENTINEL");
    ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&config.sentinel_name);
    let replies = within(config.timeout(), link.ask(&[ask])).await?;
    let parts = replies.first().and_then(Value::as_sequence).unwrap_or_default();
    match parts {
        [host, port] => address_of(host, port).ok_or_else(|| "the sentinel gives no address".into()),
        _ => Err(format!("the sentinel knows no primary named {}", config.sentinel_name)),
    }
}

/// Asks a server of a cluster for all of them.
async fn cluster(config: &BackplaneConfig, address: &Address) -> Result<Topology, Reason> {
    let mut link = Link::open(address, &config.login, config.timeout()).await?;
    let mut ask = cmd("CLUSTER");
    ask.arg("SLOTS");
    let replies = within(config.timeout(), link.ask(&[ask])).await?;
    let mut owners = vec![None; tags::SLOTS as usize];
    for range in replies.first().and_then(Value::as_sequence).unwrap_or_default() {
        let Some([first, last, primary, ..]) = range.as_sequence() else { continue };
        let Some([host, port, ..]) = primary.as_sequence() else { continue };
        let (Some(first), Some(last)) = (number(first), number(last)) else { continue };
        // A server that does not know its own name is the one that was asked.
        let named = address_of(host, port);
        let owner = named.or_else(|| {
            let port = u16::try_from(number(port)?).ok()?;
            Some(Address { host: address.host.clone(), port })
        });
        let slots = first as usize..=(last as usize).min(owners.len() - 1);
        owners.get_mut(slots).into_iter().flatten().for_each(|slot| slot.clone_from(&owner));
    }
    let mut topology = Topology::new();
    for bucket in (0..BUCKETS).map(Bucket) {
        if let Some(owner) = &owners[tags::slot(tags::tag(bucket)) as usize] {
            topology.entry(owner.clone()).or_insert_with(|| Box::new(Buckets::NONE)).insert(bucket);
        }
    }
    if topology.is_empty() { Err("the cluster has no slots".into()) } else { Ok(topology) }
}

fn address_of(host: &Value, port: &Value) -> Option<Address> {
    let host = text(host).filter(|host| !host.is_empty() && *host != "?")?;
    Some(Address { host: host.into(), port: u16::try_from(number(port)?).ok()? })
}
