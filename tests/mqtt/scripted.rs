//! A broker that does what the test says, packet by packet, in either version of MQTT.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use rollcall::mqtt::settings::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Stub {
    listener: TcpListener,
    version: Version,
}

pub struct Client {
    pub stream: TcpStream,
    version: Version,
}

impl Stub {
    pub async fn start(version: Version) -> (Self, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Self { listener, version }, port)
    }

    /// The next connection and its CONNECT, of whichever version.
    pub async fn connection(&self) -> (Client, Vec<u8>) {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut client = Client { stream, version: self.version };
        let (first, connect) = client.packet().await;
        assert_eq!(first >> 4, 1, "CONNECT");
        (client, connect)
    }

    /// Takes the next connection up to its "online", which it acknowledges.
    pub async fn accept(&self) -> Client {
        self.accept_session(0).await
    }

    pub async fn accept_session(&self, session_present: u8) -> Client {
        let (mut client, connect) = self.connection().await;
        assert_eq!(connect[6], self.version as u8 + 4, "protocol level");
        client.answer_connect(session_present, &[]).await;
        client.until_online().await;
        client
    }
}

impl Client {
    /// CONNACK with properties of MQTT 5.
    pub async fn answer_connect(&mut self, session_present: u8, properties: &[u8]) {
        match self.version {
            Version::V311 => self.send(&[0x20, 2, session_present, 0]).await,
            Version::V5 => {
                let length = properties.len() as u8;
                let head = [0x20, 3 + length, session_present, 0, length];
                self.send(&[&head, properties].concat()).await;
            }
        }
    }

    pub async fn until_online(&mut self) {
        let mut packet = self.packet().await;
        while packet.0 == 0x82 {
            let [high, low] = [packet.1[0], packet.1[1]];
            match self.version {
                Version::V311 => self.send(&[0x90, 3, high, low, 1]).await,
                Version::V5 => self.send(&[0x90, 4, high, low, 0, 1]).await,
            }
            packet = self.packet().await;
        }
        let (online, _) = self.publish_in(&packet);
        self.acknowledge(online).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub async fn packet(&mut self) -> (u8, Vec<u8>) {
        let first = self.stream.read_u8().await.unwrap();
        let mut length = 0;
        let mut shift = 0;
        loop {
            let byte = self.stream.read_u8().await.unwrap();
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        (first, body)
    }

    /// The next PUBLISH at QoS 1: its packet id and payload.
    pub async fn publish(&mut self) -> (u16, Vec<u8>) {
        let packet = self.packet().await;
        self.publish_in(&packet)
    }

    pub fn publish_in(&self, (first, body): &(u8, Vec<u8>)) -> (u16, Vec<u8>) {
        assert_eq!(first & 0xf6, 0x32, "PUBLISH at QoS 1");
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let pkid = u16::from_be_bytes([body[2 + topic], body[3 + topic]]);
        let rest = &body[4 + topic..];
        let payload = match self.version {
            Version::V311 => rest,
            Version::V5 => &rest[1 + usize::from(rest[0])..],
        };
        (pkid, payload.to_vec())
    }

    pub async fn acknowledge(&mut self, pkid: u16) {
        let [high, low] = pkid.to_be_bytes();
        self.send(&[0x40, 2, high, low]).await;
    }

    /// PUBACK with a reason code of MQTT 5.
    pub async fn answer(&mut self, pkid: u16, code: u8) {
        let [high, low] = pkid.to_be_bytes();
        self.send(&[0x40, 3, high, low, code]).await;
    }
}
