//! Ringway's control port as a scenario needs it: numbers of `/metrics`, and how many members a channel has.
//!
//! In: its address and API key. Out: sums over the shards, counts. Invariant: one connection per request, closed behind
//! it; answers are short, and read to their end.
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

/// Longest wait for the port.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Code of the server API for a channel whose namespace does not know its members.
const NOT_AVAILABLE: u64 = 108;

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct Control {
    /// Control port.
    pub address: SocketAddr,
    /// Key of the HTTP API.
    pub api_key: String,
}

impl Control {
    /// The numbers now; shards publish theirs ten times a second.
    ///
    /// # Errors
    /// What went wrong with the request.
    pub fn metrics(&self) -> Result<Metrics, String> {
        self.exchange("GET /metrics HTTP/1.1", "", "").map(Metrics)
    }

    /// Connections and distinct users in a channel; none: its namespace is without presence.
    ///
    /// # Errors
    /// What went wrong with the request, or the error that the server answered.
    pub fn members(&self, channel: &str) -> Result<Option<(u64, u64)>, String> {
        let answer = self.call("presence_stats", &json!({ "channel": channel }))?;
        let count = |key| answer["result"][key].as_u64();
        match count("num_clients").zip(count("num_users")) {
            Some(counts) => Ok(Some(counts)),
            None if answer["error"]["code"] == NOT_AVAILABLE => Ok(None),
            None => Err(format!("presence_stats of {channel}: {answer}")),
        }
    }

    /// All that is kept of a channel: offset and data of each publication, oldest first.
    ///
    /// # Errors
    /// What went wrong with the request, or the error that the server answered.
    pub fn history(&self, channel: &str) -> Result<Vec<(u64, Value)>, String> {
        let answer = self.call("history", &json!({ "channel": channel, "limit": -1 }))?;
        let publications = answer["result"]["publications"].as_array();
        let publications = publications.ok_or_else(|| format!("history of {channel}: {answer}"))?;
        let of = |publication: &Value| (publication["offset"].as_u64().unwrap_or(0), publication["data"].clone());
        Ok(publications.iter().map(of).collect())
    }

    fn call(&self, method: &str, body: &Value) -> Result<Value, String> {
        let key = format!("X-API-Key: {}\r\nContent-Type: application/json\r\n", self.api_key);
        let answer = self.exchange(&format!("POST /api/{method} HTTP/1.1"), &key, &body.to_string())?;
        serde_json::from_str(&answer).map_err(|error| format!("{method}: {error}"))
    }

    fn exchange(&self, line: &str, headers: &str, body: &str) -> Result<String, String> {
        let failed = |error: std::io::Error| format!("control port {}: {error}", self.address);
        let mut stream = TcpStream::connect_timeout(&self.address, TIMEOUT).map_err(failed)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        let (host, length) = (self.address, body.len());
        let request =
            format!("{line}\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("control port: an answer without an end")?;
        if head.split(' ').nth(1) != Some("200") {
            return Err(format!("control port: {}: {body}", head.lines().next().unwrap_or_default()));
        }
        Ok(body.to_string())
    }
}

/// Numbers of one moment.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Sum of a metric over all shards and labels; 0 when there is none.
    pub fn sum(&self, name: &str) -> u64 {
        let values = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        values.sum::<f64>() as u64
    }

    /// A metric of one shard with these labels, as `kind="ack"`; 0 when there is none.
    pub fn of(&self, name: &str, labels: &str, shard: u16) -> u64 {
        let comma = if labels.is_empty() { "" } else { "," };
        let series = format!("{name}{{{labels}{comma}shard=\"{shard}\"}} ");
        let value = self.0.lines().find_map(|line| line.strip_prefix(&*series));
        value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u64
    }

    /// How much a counter has grown since.
    pub fn since(&self, before: &Metrics, name: &str) -> u64 {
        self.sum(name).saturating_sub(before.sum(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_and_not_taken_for_another() {
        let page = "# HELP a_total x\n# TYPE a_total counter\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4\na_total_more 9\nb 1\n";
        let metrics = Metrics(page.to_string());
        assert_eq!((metrics.sum("a_total"), metrics.sum("b"), metrics.sum("c")), (7, 1, 0));
        assert_eq!((metrics.of("a_total", "", 1), metrics.of("a_total", "", 2)), (4, 0));
        let labelled = Metrics("a_total{kind=\"x\",shard=\"1\"} 5\n".to_string());
        assert_eq!((labelled.of("a_total", "kind=\"x\"", 1), labelled.of("a_total", "kind=\"y\"", 1)), (5, 0));
        assert_eq!(metrics.since(&Metrics("a_total 5\n".to_string()), "a_total"), 2);
    }
}
