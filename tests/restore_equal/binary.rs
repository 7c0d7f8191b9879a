//! What is turned into the binary form is what the server reads from the text form.

use bytes::Bytes;
use futures::SinkExt;
use futures::StreamExt;
use lifeboat::dump::binary::{Column, HEADER, TRAILER, turn};
use tokio_postgres::Client;

use crate::corpus::KINDS;
use crate::support::{Databases, connect, value};

/// Numbers without a pattern, the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn digits(&mut self, most: u64) -> String {
        (0..=self.roll(most)).map(|_| char::from(b'0' + self.roll(10) as u8)).collect()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len() as u64) as usize]
    }

    /// A value in an array, quoted or not.
    fn element(&mut self, of: &str) -> String {
        if self.roll(6) == 0 {
            return self.pick(&["NULL", "null", "", "\"NULL\"", "\"\"", "\"a", "a b", "a\\\\b"]).to_owned();
        }
        // As the array's text has it, and COPY's around that.
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\\\""));
        match of {
            "text" | "mood" => {
                let word = self.pick(&["sad", "so \"so\"", "a,b", "{}", "ä€😀", " x "]).to_owned();
                if self.roll(3) == 0 { word } else { quoted(&word) }
            }
            "timestamptz" => format!("\"{}\"", self.field(of)),
            "bytea" => self.pick(&["\"\\\\\\\\x00ff\"", "\"\\\\\\\\x\"", "\"abc\""]).to_owned(),
            of => self.field(of),
        }
    }

    /// A value as a person or a program might write it, right or wrong.
    fn field(&mut self, kind: &str) -> String {
        if self.roll(12) == 0 {
            return self
                .pick(&["", "\\N", " ", "-", "\\\\", "0", "infinity", "-infinity", "NaN", "\\.x"])
                .to_owned();
        }
        if let Some(of) = kind.strip_suffix("[]").or((kind == "few").then_some("int4")) {
            let elements: Vec<_> = (0..self.roll(5)).map(|_| self.element(of)).collect();
            return format!("{{{}}}", elements.join(self.pick(&[",", ",", ",", ", ", ",,", "},{"])));
        }
        match kind {
            "float4" | "float8" => {
                let exponent = self.pick(&["", "", "e+20", "e-07", "e5", "E3", "e+300", "e-320", "e39"]);
                let edges = [
                    "NaN",
                    "Infinity",
                    "-Infinity",
                    "-0",
                    "1e400",
                    "0e999",
                    "1e-999",
                    "5e-324",
                    "1.17549435e-38",
                    "inf",
                ];
                if self.roll(4) == 0 {
                    self.pick(&edges).to_owned()
                } else {
                    let (sign, digits, decimals) = (self.pick(&["", "-", "+"]), self.digits(17), self.digits(17));
                    format!("{sign}{digits}{}{decimals}{exponent}", self.pick(&[".", ".", ""]))
                }
            }
            "short" => self.pick(&["a", "b", "abcd", "abcde", "", "\\\\", "ä€😀x"]).to_owned(),
            "bool" => self.pick(&["t", "f", "true", "no", "T", "1"]).to_owned(),
            "int2" | "int4" | "int8" => {
                let edges = [
                    "32767",
                    "-32768",
                    "32768",
                    "2147483647",
                    "-2147483648",
                    "2147483648",
                    "9223372036854775807",
                    "-9223372036854775808",
                    "9223372036854775808",
                    "-0",
                    "+5",
                    " 7",
                    "007",
                    "0x10",
                    "1e3",
                    "1_000",
                ];
                if self.roll(3) == 0 {
                    self.pick(&edges).to_owned()
                } else {
                    format!("{}{}", self.pick(&["", "-"]), self.digits(18))
                }
            }
            "numeric" | "numeric(12, 3)" => {
                let (sign, whole) = (self.pick(&["", "-", "", "+"]), self.digits(40));
                let point = self.pick(&["", ".", "."]);
                let zeros = "0".repeat(self.roll(12) as usize);
                let decimals = if point.is_empty() { String::new() } else { format!("{zeros}{}", self.digits(30)) };
                format!("{sign}{whole}{point}{decimals}{}", self.pick(&["", "", "", "", "0000", "e3"]))
            }
            "text" | "varchar(12)" | "char(6)" => (0..self.roll(14))
                .map(|_| {
                    self.pick(&[
                        "a", "ä", "€", "😀", " ", "\\\\", "\\n", "\\t", "\\r", "\\b", "\\f", "\\v", "\\x41",
                        "\\101", "\\q", "'", "\"",
                    ])
                })
                .collect(),
            "date" | "timestamp" | "timestamptz" | "timestamp(3)" => {
                let year = match self.roll(4) {
                    0 => format!("{:04}", self.roll(5000)),
                    1 => format!("{}", self.roll(300_000)),
                    _ => format!("{:04}", 1800 + self.roll(300)),
                };
                let mut text = format!("{year}-{:02}-{:02}", self.roll(14), self.roll(33));
                if kind != "date" {
                    text += &format!(" {:02}:{:02}:{:02}", self.roll(26), self.roll(61), self.roll(61));
                    if self.roll(2) == 0 {
                        text += &format!(".{}", self.digits(6));
                    }
                    text += self.pick(&["", "+00", "-05", "+05:30", "-04:56:02", "+15:59", "+16", "Z", " UTC"]);
                }
                text + self.pick(&["", "", "", " BC"])
            }
            "uuid" => {
                let hex: String = (0..32).map(|_| self.pick(&["0", "7", "a", "F", "f", "9"])).collect();
                match self.roll(5) {
                    0 => hex,
                    _ => format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]),
                }
            }
            "inet" => {
                let address = self.pick(&[
                    "10.0.0.1",
                    "255.0.0.256",
                    "1.2.3",
                    "010.1.2.3",
                    "::1",
                    "2001:DB8::1",
                    "::ffff:1.2.3.4",
                    "1:2:3:4:5:6:7:8",
                    "1::2::3",
                    "fe80::1%eth0",
                ]);
                format!(
                    "{address}{}",
                    self.pick(&["", "", "/0", "/24", "/32", "/33", "/128", "/129", "/", "/+8", "/08"])
                )
            }
            "bytea" => match self.roll(6) {
                0 => self.pick(&["abc", "\\\\001", "\\\\x0", "\\\\xzz", "\\\\x 00"]).to_owned(),
                _ => format!(
                    "\\\\x{}",
                    (0..self.roll(20)).map(|_| self.pick(&["00", "ff", "5c", "0A", "7f"])).collect::<String>()
                ),
            },
            "jsonb" | "json" => self
                .pick(&[
                    "{}",
                    "[1, 2.50]",
                    "{\"a\": \"\\\\n\\\\u00e4\"}",
                    "null",
                    "{\"b\": 1,  \"a\": 2, \"a\": 3}",
                    "{",
                    "\"\\\\u0000\"",
                    "1e5",
                    " 1",
                    "tru",
                ])
                .to_owned(),
            _ => self.pick(&["sad", "so \"so\"", "tab\\tb\\\\s", "Sad", "sad "]).to_owned(),
        }
    }
}

async fn copy(client: &Client, sql: &str, data: Vec<u8>) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in::<_, Bytes>(sql).await?;
    futures::pin_mut!(sink);
    sink.send(data.into()).await?;
    sink.finish().await
}

fn binary(kinds: &[Column], rows: &[u8]) -> Option<Vec<u8>> {
    let mut out = HEADER.to_vec();
    turn(kinds, rows, &mut out).ok()?;
    out.extend_from_slice(TRAILER);
    Some(out)
}

async fn kinds(client: &Client, table: &str) -> Vec<Column> {
    let rows = client.query(Column::TYPES, &[&table]).await.unwrap();
    let column = |row: &tokio_postgres::Row| Column::of(row.get(1), row.get(2), row.get(3), row.get(4));
    rows.iter().map(|row| column(row).expect("a type that can be turned")).collect()
}

async fn text_of(client: &Client, table: &str) -> Vec<u8> {
    let stream = client.copy_out(&*format!("COPY {table} TO STDOUT")).await.unwrap();
    futures::pin_mut!(stream);
    let mut all = vec![];
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_postgresql_writes_is_turned_into_the_same_values() {
    let names = Databases::new("bin_written");
    let database = names.create("db", KINDS).await;
    let client = connect(&database).await;
    // Many more of each kind.
    client
        .batch_execute(
            "SELECT setseed(0.5); \
             INSERT INTO plain (b, i2, i4, i8, t, d, ts, tz, ts3, u, y, j, n, n2) SELECT g % 2 = 0, (random() * 65535 - 32768)::int2, ((random() - 0.5) * 4294967290)::int4, \
               ((random() - 0.5) * 18446744073709000000)::int8, (SELECT string_agg(chr(1 + (random() * 300)::int), '') FROM generate_series(1, 12) h WHERE h <> -g), \
               '2000-01-01'::date + ((random() - 0.4) * 3000000)::int, '2000-01-01'::timestamp + (random() - 0.02) * interval '250000 years', \
               '2000-01-01'::timestamptz + (random() - 0.5) * interval '500 years', '2000-01-01'::timestamp + random() * interval '90 years', gen_random_uuid(), \
               sha256(g::text::bytea), jsonb_build_object('k' || g, random(), 't', chr(32 + g % 500)), \
               (random() - 0.5)::numeric * power(10::numeric, (random() * 60 - 30)::int), ((random() - 0.5) * 1000000)::numeric FROM generate_series(1, 4000) g; \
             CREATE TABLE turned (LIKE plain); CREATE TABLE as_text (LIKE plain);",
        )
        .await
        .unwrap();
    let rows = text_of(&client, "plain").await;
    let turned = binary(&kinds(&client, "plain").await, &rows).expect("all that the server writes can be turned");
    let count = copy(&client, "COPY turned FROM STDIN WITH (FORMAT binary)", turned).await.unwrap();
    assert_eq!(copy(&client, "COPY as_text FROM STDIN", rows.clone()).await.unwrap(), count);
    assert!(count > 4000);
    assert_eq!(text_of(&client, "turned").await, rows);
    // Equal by their bytes on the disk, too, as `record_image_eq` sees them.
    let differ =
        "SELECT count(*) FROM turned one JOIN as_text other ON one.ctid = other.ctid WHERE NOT (one *= other)";
    assert_eq!(value(&database, differ).await.unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_turned_the_server_reads_the_same_from_text() {
    let names = Databases::new("bin_any");
    let database = names.create("db", "CREATE TYPE mood AS ENUM ('sad', 'so \"so\"', 'tab\tb\\s'); \
         CREATE DOMAIN text_a AS text CHECK (VALUE <> 'b'); CREATE DOMAIN short AS text_a CHECK (length(VALUE) < 5); \
         CREATE DOMAIN few AS int[] CHECK (cardinality(VALUE) < 4);").await;
    let client = connect(&database).await;
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    let mut dice = Dice(seed);
    let types = [
        "bool",
        "int2",
        "int4",
        "int8",
        "numeric",
        "numeric(12, 3)",
        "text",
        "varchar(12)",
        "char(6)",
        "date",
        "timestamp",
        "timestamptz",
        "timestamp(3)",
        "uuid",
        "bytea",
        "jsonb",
        "json",
        "mood",
        "inet",
        "float4",
        "float8",
        "short",
        "text[]",
        "int4[]",
        "float8[]",
        "mood[]",
        "timestamptz[]",
        "bytea[]",
        "few",
    ];
    client.batch_execute("SET TimeZone = 'Asia/Kolkata'").await.unwrap();
    for kind in types {
        client
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS a, b; CREATE TABLE a (x {kind}); CREATE TABLE b (x {kind})"
            ))
            .await
            .unwrap();
        let kinds = kinds(&client, "a").await;
        let mut fields = vec![];
        for _ in 0..400 {
            let field = dice.field(kind);
            if let Some(turned) = binary(&kinds, format!("{field}\n").as_bytes()) {
                fields.push((field, turned));
            }
        }
        assert!(fields.len() > 15, "{kind}: only {} were turned", fields.len());
        for (field, turned) in fields {
            let by_text = copy(&client, "COPY a FROM STDIN", format!("{field}\n").into_bytes()).await;
            let by_binary = copy(&client, "COPY b FROM STDIN WITH (FORMAT binary)", turned).await;
            // What one refuses, the other must refuse.
            assert_eq!(
                by_text.is_ok(),
                by_binary.is_ok(),
                "seed {seed}, {kind} {field:?}: {by_text:?}, {by_binary:?}"
            );
        }
        assert_eq!(text_of(&client, "a").await, text_of(&client, "b").await, "seed {seed}, {kind}");
    }
}
