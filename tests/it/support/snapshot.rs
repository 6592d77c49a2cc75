//! The fields of a counter in Redis by name, decoded and encoded without the service's own codec.

use std::collections::BTreeMap;

use rmp::{decode, encode};

use super::World;

/// Values as text; `used`, `denied` and `refunded` of an hour are named `used@<start in ms>` and so on.
pub type CounterFields = BTreeMap<String, String>;

const HEAD: [&str; 6] = ["used", "sequence", "stored", "oldest", "stamp", "denied"];
const REST: [&str; 5] = ["refunded", "peak", "told", "past", "adjusted"];

impl World {
    /// The fields of a counter; empty if the key does not exist.
    pub async fn snapshot(&self, key: &str) -> CounterFields {
        let value: Option<Vec<u8>> = self.redis_command(&["GET", key]).await;
        value.map_or_else(CounterFields::new, |value| decode_counter(&value))
    }

    /// Overwrites fields of a counter.
    pub async fn overwrite(&self, key: &str, fields: &[(&str, &str)]) {
        let put = |counter: &mut CounterFields| {
            let fields = fields.iter();
            counter.extend(fields.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        };
        self.change(key, put).await;
    }

    /// Adds to a numeric field of a counter.
    pub async fn add(&self, key: &str, name: &str, by: i64) {
        let add = |counter: &mut CounterFields| {
            let number = counter[name].parse::<i64>().unwrap() + by;
            counter.insert(name.to_owned(), number.to_string());
        };
        self.change(key, add).await;
    }

    /// A compare-and-set loop, because the service may write concurrently.
    async fn change(&self, key: &str, change: impl Fn(&mut CounterFields)) {
        let unless_changed = "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
                              redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') return 1";
        let mut redis = self.redis_for(key).await;
        loop {
            let value: Option<Vec<u8>> = self.redis_command(&["GET", key]).await;
            let mut counter = value
                .as_deref()
                .map_or_else(CounterFields::new, decode_counter);
            change(&mut counter);
            let mut set = redis::cmd("EVAL");
            set.arg(unless_changed).arg(1).arg(key);
            set.arg(value.unwrap_or_default())
                .arg(encode_counter(&counter));
            if set.query_async(&mut redis).await.unwrap() {
                return;
            }
        }
    }
}

fn decode_counter(mut value: &[u8]) -> CounterFields {
    let mut counter = CounterFields::new();
    for name in HEAD {
        counter.insert(name.to_owned(), item(&mut value));
    }
    let (mut start, used, denied) = (item(&mut value), item(&mut value), item(&mut value));
    let (mut refunded, mut left) = ("0".to_owned(), 0);
    counter.insert("crossed".to_owned(), String::new());
    if value.is_empty() {
        counter.extend(REST.map(|name| (name.to_owned(), String::new())));
    } else {
        left = decode::read_array_len(&mut value).unwrap() as usize - REST.len() - 1;
        for name in REST {
            counter.insert(name.to_owned(), item(&mut value));
        }
        refunded = item(&mut value);
    }
    let mut hour = [used, denied, refunded];
    while !start.is_empty() {
        for (name, value) in ["used", "denied", "refunded"].iter().zip(hour.clone()) {
            counter.insert(format!("{name}@{start}"), value);
        }
        if left < 2 {
            break;
        }
        left -= 2;
        let gap: i64 = item(&mut value).parse().unwrap();
        start = (start.parse::<i64>().unwrap() - gap.abs() * 1000).to_string();
        hour = [item(&mut value), "0".to_owned(), "0".to_owned()];
        if gap < 0 {
            left -= 2;
            hour[1] = item(&mut value);
            hour[2] = item(&mut value);
        }
    }
    if left > 0 {
        counter.insert("crossed".to_owned(), item(&mut value));
    }
    assert!(value.is_empty(), "{counter:?}");
    counter
}

/// The next item as text; empty for nil.
fn item(value: &mut &[u8]) -> String {
    if value[0] == 0xc0 {
        *value = &value[1..];
        return String::new();
    }
    if let Ok((text, rest)) = decode::read_str_from_slice(*value) {
        *value = rest;
        return text.to_owned();
    }
    decode::read_int::<i64, _>(value).unwrap().to_string()
}

fn encode_counter(counter: &CounterFields) -> Vec<u8> {
    let mut value = Vec::new();
    let text = |name: &str| counter.get(name).map_or("", String::as_str);
    let number = |name: &str| text(name).parse::<i64>().unwrap_or(0);
    let put = |value: &mut Vec<u8>, name: &str| match name {
        "stamp" | "told" | "past" | "adjusted" | "crossed" => {
            encode::write_str(value, text(name)).unwrap();
        }
        "oldest" if text(name).is_empty() => encode::write_nil(value).unwrap(),
        _ => {
            encode::write_sint(value, number(name)).unwrap();
        }
    };
    for name in HEAD {
        put(&mut value, name);
    }
    let starts = counter.keys().filter_map(|name| name.strip_prefix("used@"));
    let mut starts: Vec<i64> = starts.map(|start| start.parse().unwrap()).collect();
    starts.sort_unstable_by(|one, other| other.cmp(one));
    let Some(newest) = starts.first() else {
        encode::write_nil(&mut value).unwrap();
        value.extend([0, 0]);
        return value;
    };
    encode::write_sint(&mut value, *newest).unwrap();
    put(&mut value, &format!("used@{newest}"));
    put(&mut value, &format!("denied@{newest}"));
    let crossed = !text("crossed").is_empty();
    let length = REST.len() + 1 + 4 * (starts.len() - 1) + usize::from(crossed);
    encode::write_array_len(&mut value, u32::try_from(length).unwrap()).unwrap();
    for name in REST {
        put(&mut value, name);
    }
    put(&mut value, &format!("refunded@{newest}"));
    for (newer, start) in starts.iter().zip(&starts[1..]) {
        encode::write_sint(&mut value, (start - newer) / 1000).unwrap();
        for name in ["used", "denied", "refunded"] {
            put(&mut value, &format!("{name}@{start}"));
        }
    }
    if crossed {
        put(&mut value, "crossed");
    }
    value
}
