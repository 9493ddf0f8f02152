//! Why a connection to the broker failed or ended, by what somebody would do about it.
//!
//! Each variant has its own remedy in `rollcall doctor`. Texts of the libraries are kept as details
//! for the log, and nothing may be decided by them.

use std::io::{self, ErrorKind};
use std::time::Duration;

use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::v5::mqttbytes::Error as PacketErrorV5;
use rumqttc::v5::mqttbytes::v5::ConnectReturnCode as ConnectReturnCodeV5;
use rumqttc::v5::mqttbytes::v5::DisconnectReasonCode;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError as ClientTlsError, v5};
use rustls::{AlertDescription, CertificateError};

use crate::error_chain::error_chain;

/// For connecting, and for rumqttc's flush: its default of 5 s is too short for 1 MiB over a bad
/// mobile link.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    #[error("{0}")]
    Refused(ConnectRefusal),
    #[error("{fault} ({detail})")]
    Tls { fault: TlsFault, detail: String },
    #[error("the broker's host name has no address ({0})")]
    Dns(String),
    /// The network or the broker's computer refused the connection.
    #[error("the broker cannot be reached ({detail})")]
    Tcp { kind: ErrorKind, detail: String },
    #[error("the broker closed the connection")]
    Closed,
    /// MQTT 5: by a DISCONNECT of its own.
    #[error("the broker ended the connection: {0}")]
    Disconnected(DisconnectReason),
    /// The packet is not shown: it could be anybody's.
    #[error("the server at this port sends what is not MQTT")]
    NotMqtt,
    #[error("the broker does not support QoS 1")]
    NoQos1,
    #[error("the broker sent a packet of {bytes} bytes, which is above the limit")]
    Oversized { bytes: usize },
    #[error("no reply within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the broker does not reply to pings")]
    NoPingReply,
    #[error("the broker no longer acknowledges")]
    NoAcknowledgement,
    #[error("the broker acknowledges out of order, and packet ids ran out")]
    PacketIdsExhausted,
    #[error("the queue of a new connection was full")]
    QueueFull,
    #[error("the MQTT connection failed ({0})")]
    Other(String),
}

/// Why the broker refused the connection (CONNACK).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectRefusal {
    #[error("the broker rejects the user name or password")]
    Credentials,
    #[error("the broker does not authorise this device: check user, password and access rules")]
    NotAuthorised,
    #[error("the broker rejects the client id")]
    ClientId,
    #[error("the broker does not support this version of MQTT")]
    ProtocolVersion,
    #[error("the broker is not available at present")]
    Unavailable,
    #[error("the broker refused the connection without a known reason")]
    Unknown,
}

/// Why the broker ended the connection (DISCONNECT of MQTT 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// Usually its answer to a publish that its access rules forbid.
    #[error("this device is not authorised")]
    NotAuthorised,
    #[error("another client uses the client id of this device")]
    SessionTakenOver,
    #[error("it is shutting down or busy")]
    Unavailable,
    #[error("a quota is exhausted")]
    Quota,
    #[error("by its administrator")]
    Administrative,
    #[error("reason code 0x{0:02x}")]
    Other(u8),
}

/// What failed in the TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    #[error("the broker's certificate is expired or not valid yet")]
    NotValidNow,
    #[error("the broker's certificate is for another name")]
    WrongName,
    #[error("the broker's certificate is not signed by a known authority")]
    UnknownAuthority,
    #[error("the broker's certificate cannot be used")]
    UnusableCertificate,
    #[error("the broker rejects the certificate of this device")]
    ClientCertificate,
    #[error("the server at this port does not use TLS")]
    NotTls,
    #[error("TLS failed")]
    Other,
}

impl LinkFault {
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Returns whether another version of MQTT may get further with a broker that has ended a
    /// connection before its CONNACK.
    pub(super) fn may_be_the_version(&self) -> bool {
        matches!(
            self,
            Self::Refused(ConnectRefusal::ProtocolVersion | ConnectRefusal::Unknown)
                | Self::Closed
                | Self::Disconnected(_)
                | Self::NotMqtt
                | Self::NoQos1
                | Self::Timeout(_)
                | Self::Other(_)
        )
    }

    /// Returns whether the broker states that it is a question of rights.
    pub(super) fn denies(&self) -> bool {
        matches!(self, Self::Disconnected(DisconnectReason::NotAuthorised))
    }

    /// Returns whether some brokers answer a forbidden publish so.
    pub(super) fn may_be_a_refused_publish(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Disconnected(reason) => !matches!(
                reason,
                DisconnectReason::SessionTakenOver | DisconnectReason::Unavailable
            ),
            _ => false,
        }
    }
}

impl From<ConnectionError> for LinkFault {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ConnectionRefused(code) => Self::Refused(code.into()),
            ConnectionError::NetworkTimeout => Self::Timeout(CONNECT_TIMEOUT),
            ConnectionError::Tls(ClientTlsError::Io(error))
            | ConnectionError::Io(error)
            | ConnectionError::MqttState(StateError::Io(error)) => error.into(),
            ConnectionError::MqttState(StateError::Deserialization(
                PacketError::PayloadSizeLimitExceeded(bytes),
            )) => Self::Oversized { bytes },
            ConnectionError::NotConnAck(_)
            | ConnectionError::MqttState(StateError::Deserialization(_)) => Self::NotMqtt,
            ConnectionError::MqttState(StateError::ConnectionAborted) => Self::Closed,
            ConnectionError::MqttState(StateError::AwaitPingResp) => Self::NoPingReply,
            other => Self::Other(error_chain(&other)),
        }
    }
}

impl From<v5::ConnectionError> for LinkFault {
    fn from(error: v5::ConnectionError) -> Self {
        use v5::{ConnectionError, StateError};
        match error {
            ConnectionError::ConnectionRefused(code)
            | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => {
                Self::Refused(code.into())
            }
            ConnectionError::Timeout(_) => Self::Timeout(CONNECT_TIMEOUT),
            ConnectionError::Tls(ClientTlsError::Io(error))
            | ConnectionError::Io(error)
            | ConnectionError::MqttState(
                StateError::Io(error) | StateError::Deserialization(PacketErrorV5::Io(error)),
            ) => error.into(),
            ConnectionError::MqttState(StateError::Deserialization(
                PacketErrorV5::PayloadSizeLimitExceeded { pkt_size, .. },
            )) => Self::Oversized { bytes: pkt_size },
            // A DISCONNECT without a reason code, which rumqttc cannot read.
            ConnectionError::MqttState(
                StateError::ConnectionAborted
                | StateError::Deserialization(PacketErrorV5::PayloadRequired),
            ) => Self::Closed,
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
                Self::Disconnected(reason_code.into())
            }
            ConnectionError::NotConnAck(_)
            | ConnectionError::MqttState(StateError::Deserialization(_)) => Self::NotMqtt,
            ConnectionError::MqttState(StateError::AwaitPingResp) => Self::NoPingReply,
            ConnectionError::MqttState(StateError::CollisionTimeout) => Self::PacketIdsExhausted,
            other => Self::Other(error_chain(&other)),
        }
    }
}

impl From<io::Error> for LinkFault {
    fn from(error: io::Error) -> Self {
        let detail = error_chain(&error);
        let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
        if let Some(fault) = tls.map(TlsFault::from) {
            return Self::Tls { fault, detail };
        }
        match error.kind() {
            ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::InvalidData => Self::NotMqtt,
            ErrorKind::TimedOut => Self::Timeout(CONNECT_TIMEOUT),
            // The resolver's errors have no stable kind, but they alone carry no code of the
            // operating system.
            _ if error.raw_os_error().is_none() => Self::Dns(detail),
            kind => Self::Tcp { kind, detail },
        }
    }
}

impl From<ConnectReturnCode> for ConnectRefusal {
    fn from(code: ConnectReturnCode) -> Self {
        match code {
            ConnectReturnCode::BadUserNamePassword => Self::Credentials,
            ConnectReturnCode::NotAuthorized => Self::NotAuthorised,
            ConnectReturnCode::BadClientId => Self::ClientId,
            ConnectReturnCode::RefusedProtocolVersion => Self::ProtocolVersion,
            ConnectReturnCode::ServiceUnavailable => Self::Unavailable,
            ConnectReturnCode::Success => Self::Unknown,
        }
    }
}

impl From<ConnectReturnCodeV5> for ConnectRefusal {
    fn from(code: ConnectReturnCodeV5) -> Self {
        use ConnectReturnCodeV5 as Code;
        match code {
            Code::BadUserNamePassword => Self::Credentials,
            Code::NotAuthorized | Code::Banned | Code::BadAuthenticationMethod => {
                Self::NotAuthorised
            }
            Code::ClientIdentifierNotValid | Code::BadClientId => Self::ClientId,
            // The last two: our last will is retained and at QoS 1, and 3.1.1 has no such answer.
            Code::UnsupportedProtocolVersion
            | Code::RefusedProtocolVersion
            | Code::MalformedPacket
            | Code::ProtocolError
            | Code::RetainNotSupported
            | Code::QoSNotSupported => Self::ProtocolVersion,
            Code::ServerUnavailable
            | Code::ServiceUnavailable
            | Code::ServerBusy
            | Code::QuotaExceeded
            | Code::ConnectionRateExceeded => Self::Unavailable,
            Code::Success
            | Code::UnspecifiedError
            | Code::ImplementationSpecificError
            | Code::TopicNameInvalid
            | Code::PacketTooLarge
            | Code::PayloadFormatInvalid
            | Code::UseAnotherServer
            | Code::ServerMoved => Self::Unknown,
        }
    }
}

impl From<DisconnectReasonCode> for DisconnectReason {
    fn from(code: DisconnectReasonCode) -> Self {
        use DisconnectReasonCode as Code;
        match code {
            Code::NotAuthorized => Self::NotAuthorised,
            Code::SessionTakenOver => Self::SessionTakenOver,
            Code::ServerBusy | Code::ServerShuttingDown => Self::Unavailable,
            Code::QuotaExceeded | Code::MessageRateTooHigh | Code::ConnectionRateExceeded => {
                Self::Quota
            }
            Code::AdministrativeAction => Self::Administrative,
            other => Self::Other(other as u8),
        }
    }
}

impl ConnectRefusal {
    /// By the number in the packet (MQTT 3.1.1, table 3.1).
    pub(super) fn from_code(code: u8) -> Self {
        match code {
            1 => Self::ProtocolVersion,
            2 => Self::ClientId,
            3 => Self::Unavailable,
            4 => Self::Credentials,
            5 => Self::NotAuthorised,
            _ => Self::Unknown,
        }
    }
}

impl From<&rustls::Error> for TlsFault {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::NotValidNow,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    Self::UnknownAuthority
                }
                _ => Self::UnusableCertificate,
            },
            rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::HandshakeFailure
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => Self::ClientCertificate,
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_os(code: i32) -> LinkFault {
        io::Error::from_raw_os_error(code).into()
    }

    fn of_tls(error: rustls::Error) -> Option<TlsFault> {
        match io::Error::new(ErrorKind::InvalidData, error).into() {
            LinkFault::Tls { fault, .. } => Some(fault),
            _ => None,
        }
    }

    #[test]
    fn network_errors_are_classified_by_kind() {
        assert!(matches!(
            of_os(libc::ECONNREFUSED),
            LinkFault::Tcp { kind: ErrorKind::ConnectionRefused, .. }
        ));
        assert!(matches!(
            of_os(libc::ENETUNREACH),
            LinkFault::Tcp { kind: ErrorKind::NetworkUnreachable, .. }
        ));
        assert_eq!(of_os(libc::ECONNRESET), LinkFault::Closed);
        assert_eq!(of_os(libc::ETIMEDOUT), LinkFault::Timeout(CONNECT_TIMEOUT));
        assert_eq!(LinkFault::from(io::Error::from(ErrorKind::UnexpectedEof)), LinkFault::Closed);
    }

    #[test]
    fn unresolved_host_names_are_dns_faults() {
        // `.invalid` never exists (RFC 6761); without a resolver the error is of the same kind.
        let error = std::net::ToSocketAddrs::to_socket_addrs("broker.invalid:1883").err().unwrap();
        assert!(matches!(LinkFault::from(error), LinkFault::Dns(_)));
    }

    #[test]
    fn tls_errors_are_classified_by_remedy() {
        use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
        for (error, fault) in [
            (InvalidCertificate(CertificateError::Expired), TlsFault::NotValidNow),
            (InvalidCertificate(CertificateError::NotValidForName), TlsFault::WrongName),
            (InvalidCertificate(CertificateError::UnknownIssuer), TlsFault::UnknownAuthority),
            (InvalidCertificate(CertificateError::BadEncoding), TlsFault::UnusableCertificate),
            (AlertReceived(AlertDescription::CertificateRequired), TlsFault::ClientCertificate),
            (InvalidMessage(rustls::InvalidMessage::InvalidContentType), TlsFault::NotTls),
        ] {
            assert_eq!(of_tls(error), Some(fault));
        }
    }
}
