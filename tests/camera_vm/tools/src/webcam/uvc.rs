//! A webcam as USB Video Class 1.0 describes one: a camera terminal, a streaming terminal, and one
//! bulk endpoint that offers MJPG and YUYV in one size and at one rate.

pub const WIDTH: u16 = 640;
pub const HEIGHT: u16 = 480;
/// Five frames a second, in units of 100 ns: an emulated processor has no time for more.
pub const FRAME_INTERVAL: u32 = 2_000_000;
/// Bytes of one payload. As many as uvcvideo takes in one transfer (32 packets of 512 bytes), so
/// that every transfer is one payload with a header of its own.
const PAYLOAD_MAX: u32 = 32 * PACKET as u32;
const PACKET: u16 = 512;
/// Two bytes a pixel: what YUYV needs, and more than any JPEG of that size here.
pub const FRAME_MAX: u32 = WIDTH as u32 * HEIGHT as u32 * 2;

const VIDEO: u8 = 0x0e;
const INTERFACE_SPECIFIC: u8 = 0x24;
const CAMERA: u8 = 1;
const OUTPUT: u8 = 2;
const ENDPOINT: u8 = 0x81;
const YUY2: [u8; 16] = *b"YUY2\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Mjpg = 1,
    Yuyv = 2,
}

/// The setup packet of a control request.
struct Setup {
    kind: u8,
    request: u8,
    value: u16,
    index: u16,
    length: usize,
}

/// What the host and the device agree on before video flows (the probe and commit controls, 26
/// bytes).
#[derive(Clone, Copy)]
struct Agreement {
    format: Format,
}

impl Agreement {
    fn read(bytes: &[u8]) -> Self {
        let is_yuyv = bytes.get(2) == Some(&(Format::Yuyv as u8));
        Self { format: if is_yuyv { Format::Yuyv } else { Format::Mjpg } }
    }

    /// There is one frame size and one interval, whatever the host asked for.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0, 0, self.format as u8, 1];
        bytes.extend(FRAME_INTERVAL.to_le_bytes());
        bytes.extend([0; 10]);
        bytes.extend(FRAME_MAX.to_le_bytes());
        bytes.extend(PAYLOAD_MAX.to_le_bytes());
        bytes
    }
}

pub struct Camera {
    product: String,
    serial: String,
    probed: Agreement,
    committed: Agreement,
}

impl Camera {
    pub fn new(product: &str, serial: &str) -> Self {
        let first = Agreement { format: Format::Mjpg };
        Self { product: product.to_owned(), serial: serial.to_owned(), probed: first, committed: first }
    }

    pub fn format(&self) -> Format {
        self.committed.format
    }

    /// Answers a control request; `None` rejects it. What the host sends is answered with nothing.
    pub fn control(&mut self, setup: [u8; 8], data: &[u8]) -> Option<Vec<u8>> {
        let word = |at: usize| u16::from_le_bytes([setup[at], setup[at + 1]]);
        let setup = Setup {
            kind: setup[0],
            request: setup[1],
            value: word(2),
            index: word(4),
            length: usize::from(word(6)),
        };
        let mut answer = match setup.kind {
            // Configuration, interface and halt are set without more ado.
            0x00..=0x02 => Vec::new(),
            0x80 if setup.request == 6 => self.descriptor(setup.value)?,
            0x80..=0x82 if setup.request == 0 => vec![0, 0],
            0x21 | 0xa1 if setup.index == 1 => self.streaming(&setup, data)?,
            _ => return None,
        };
        answer.truncate(setup.length);
        Some(answer)
    }

    fn streaming(&mut self, setup: &Setup, data: &[u8]) -> Option<Vec<u8>> {
        let agreement = match setup.value >> 8 {
            1 => &mut self.probed,
            2 => &mut self.committed,
            _ => return None,
        };
        match setup.request {
            0x01 => {
                *agreement = Agreement::read(data);
                Some(Vec::new())
            }
            0x81..=0x84 => Some(agreement.bytes()),
            0x85 => Some((agreement.bytes().len() as u16).to_le_bytes().to_vec()),
            // It can be got and set.
            0x86 => Some(vec![3]),
            0x87 => Some(Agreement { format: Format::Mjpg }.bytes()),
            _ => None,
        }
    }

    fn descriptor(&self, value: u16) -> Option<Vec<u8>> {
        match (value >> 8, value & 0xff) {
            (1, _) => Some(device()),
            (2, _) => Some(configuration()),
            // The languages: one, US English.
            (3, 0) => Some(vec![4, 3, 0x09, 0x04]),
            (3, 1) => Some(string("Test bench")),
            (3, 2) => Some(string(&self.product)),
            (3, 3) => Some(string(&self.serial)),
            _ => None,
        }
    }
}

/// The ids are those of Linux's own webcam gadget.
fn device() -> Vec<u8> {
    let vendor = 0x1d6b_u16.to_le_bytes();
    let product = 0x0102_u16.to_le_bytes();
    // USB 2.0, a device of several interfaces, 64 bytes on endpoint 0.
    let mut bytes = vec![18, 1, 0x00, 0x02, 0xef, 2, 1, 64];
    bytes.extend(vendor);
    bytes.extend(product);
    // Its version; maker, product and serial number are strings 1 to 3; one configuration.
    bytes.extend([0x00, 0x01, 1, 2, 3, 1]);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [vec![units.len() as u8 + 2, 3], units].concat()
}

/// A descriptor with its length before it.
fn sized(body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [vec![body.len() as u8 + 1], body].concat()
}

fn configuration() -> Vec<u8> {
    let control = control_interface();
    let streaming = streaming_interface();
    let association = sized(&[&[0x0b, 0, 2, VIDEO, 3, 0, 0]]);
    let length = 9 + association.len() + control.len() + streaming.len();
    // Two interfaces, configuration 1, powered by the bus with 500 mA.
    let head = sized(&[&[2], &(length as u16).to_le_bytes(), &[2, 1, 0, 0x80, 250]]);
    [head, association, control, streaming].concat()
}

fn control_interface() -> Vec<u8> {
    let interface = sized(&[&[4, 0, 0, 0, VIDEO, 1, 0, 0]]);
    // A camera without controls, its lens not described; whatever it gives is streamed.
    let camera = sized(&[&[INTERFACE_SPECIFIC, 2, CAMERA, 0x01, 0x02, 0, 0], &[0; 6], &[3, 0, 0, 0]]);
    let output = sized(&[&[INTERFACE_SPECIFIC, 3, OUTPUT, 0x01, 0x01, 0, CAMERA, 0]]);
    let length = 13 + camera.len() + output.len();
    let head = sized(&[
        &[INTERFACE_SPECIFIC, 1, 0x00, 0x01],
        &(length as u16).to_le_bytes(),
        &48_000_000_u32.to_le_bytes(), // the clock of time stamps, which are not sent
        &[1, 1],
    ]);
    [interface, head, camera, output].concat()
}

fn streaming_interface() -> Vec<u8> {
    let interface = sized(&[&[4, 1, 0, 1, VIDEO, 2, 0, 0]]);
    let mjpg = sized(&[&[INTERFACE_SPECIFIC, 6, Format::Mjpg as u8, 1, 0, 1, 0, 0, 0, 0]]);
    let yuyv = sized(&[&[INTERFACE_SPECIFIC, 4, Format::Yuyv as u8, 1], &YUY2, &[16, 1, 0, 0, 0, 0]]);
    let formats = [mjpg, frame(7), yuyv, frame(5)].concat();
    let length = 15 + formats.len();
    let head = sized(&[
        &[INTERFACE_SPECIFIC, 1, 2],
        &(length as u16).to_le_bytes(),
        &[ENDPOINT, 0, OUTPUT, 0, 0, 0, 1, 0, 0],
    ]);
    let endpoint = sized(&[&[5, ENDPOINT, 2], &PACKET.to_le_bytes(), &[0]]);
    [interface, head, formats, endpoint].concat()
}

/// The only frame size of a format, at the only rate.
fn frame(subtype: u8) -> Vec<u8> {
    let bits_a_second = FRAME_MAX * 8 * 5;
    sized(&[
        &[INTERFACE_SPECIFIC, subtype, 1, 0],
        &WIDTH.to_le_bytes(),
        &HEIGHT.to_le_bytes(),
        &bits_a_second.to_le_bytes(),
        &bits_a_second.to_le_bytes(),
        &FRAME_MAX.to_le_bytes(),
        &FRAME_INTERVAL.to_le_bytes(),
        &[1],
        &FRAME_INTERVAL.to_le_bytes(),
    ])
}

/// Bits of a payload's header.
const FRAME_ID: u8 = 0x01;
const END_OF_FRAME: u8 = 0x02;
const ERROR: u8 = 0x40;
const END_OF_HEADER: u8 = 0x80;

/// One frame on its way to the host.
pub struct Sending {
    data: Vec<u8>,
    sent: usize,
    flags: u8,
}

impl Sending {
    /// The number of the frame says which of two ids it has; by their change the host sees where a
    /// frame begins.
    pub fn new(data: Vec<u8>, number: u64, has_error: bool) -> Self {
        let id = if number % 2 == 1 { FRAME_ID } else { 0 };
        Self { data, sent: 0, flags: END_OF_HEADER | id | if has_error { ERROR } else { 0 } }
    }

    pub fn is_complete(&self) -> bool {
        self.sent == self.data.len()
    }

    /// The next payload: a header of two bytes, and as much of the frame as there is room for.
    pub fn payload(&mut self, room: usize) -> Vec<u8> {
        let end = self.data.len().min(self.sent + room.saturating_sub(2));
        let is_last = end == self.data.len();
        let mut payload = vec![2, self.flags | if is_last { END_OF_FRAME } else { 0 }];
        payload.extend_from_slice(&self.data[self.sent..end]);
        self.sent = end;
        payload
    }
}
