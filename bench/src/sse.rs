//! A small HTTP/1.1 client over plain TCP: enough for JSON, chunked bodies and server-sent events, and able to hang up
//! at any byte, which ordinary clients make difficult.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, ensure};

/// A response whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// Bytes of a body with a known length.
    length: Option<usize>,
}

/// Sends a request; `body` is JSON.
pub(crate) fn send(address: &str, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<Response> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let body = body.unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let status_line = line(&mut reader)?;
    let status = status_line.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an HTTP response: {status_line:?}"))?;
    let (mut chunked, mut length) = (false, None);
    loop {
        let header = line(&mut reader)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        if let Some(value) = header.strip_prefix("content-length:") {
            length = Some(value.trim().parse()?);
        }
    }
    Ok(Response { status, reader, chunked, length })
}

fn line(reader: &mut impl BufRead) -> anyhow::Result<String> {
    let mut text = String::new();
    ensure!(reader.read_line(&mut text)? > 0, "the server closed the connection");
    Ok(text.trim_end().to_owned())
}

impl Response {
    /// The next piece of the body; `None` at its end.
    pub(crate) fn piece(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let size = if self.chunked {
            usize::from_str_radix(&line(&mut self.reader)?, 16)?
        } else {
            self.length.take().unwrap_or(0)
        };
        if size == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; size];
        self.reader.read_exact(&mut piece)?;
        if self.chunked {
            line(&mut self.reader)?;
        }
        Ok(Some(piece))
    }

    /// The whole body as text.
    pub(crate) fn text(mut self) -> anyhow::Result<String> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece()? {
            body.extend(piece);
        }
        Ok(String::from_utf8(body)?)
    }
}
