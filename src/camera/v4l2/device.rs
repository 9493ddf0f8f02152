//! The kernel's side of a camera: ioctls and mapped buffers as plain Rust values. The only `unsafe` of the camera is here.
//!
//! The `v4l` crate (here its fork with the kernel's structures checked in) is used for structures and numbers alone: its
//! own stream waits for ever on a stalled camera, answers EINVAL for ever after a time-out, and panics on a product name
//! that is cut inside a character. What must hold here: no call blocks (the descriptor is non-blocking, `wait` has a
//! limit), nothing that a device says is trusted (names are cleaned, lists are cut off, lengths are checked against the
//! mapping), and a dropped stream leaves no mapping and no descriptor behind.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::time::Duration;

use moq_v4l::sys;
use moq_v4l::v4l2::vidioc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A pixel format as four letters, as the kernel names it.
pub type FourCc = [u8; 4];

const CAPTURE: u32 = sys::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE;
const MMAP: u32 = sys::v4l2_memory_V4L2_MEMORY_MMAP;
/// No camera has lists longer than these; a device that never ends its list is cut off.
const LIST_MAX: u32 = 128;
const CONTROLS_MAX: usize = 256;

/// An open device node.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

#[derive(Clone, Debug)]
pub struct Capability {
    pub driver: String,
    pub card: String,
    pub bus: String,
    caps: u32,
}

impl Capability {
    pub fn captures(&self) -> bool {
        self.caps & sys::V4L2_CAP_VIDEO_CAPTURE != 0 && self.caps & sys::V4L2_CAP_STREAMING != 0
    }

    /// Captures in the way of image processors in phones and boards, which hand out a picture in several buffers.
    pub fn only_multi_planar(&self) -> bool {
        self.caps & sys::V4L2_CAP_VIDEO_CAPTURE == 0
            && self.caps & sys::V4L2_CAP_VIDEO_CAPTURE_MPLANE != 0
    }
}

/// What the driver agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub fourcc: FourCc,
    pub width: usize,
    pub height: usize,
    /// Bytes from one row to the next; 0 for compressed formats.
    pub stride: usize,
    /// The largest frame in bytes.
    pub size: usize,
    /// The driver says that brightness uses all 256 values.
    pub full_range: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSizes {
    Listed(u32, u32),
    /// Anything between the smallest and the largest.
    Range {
        least: (u32, u32),
        most: (u32, u32),
    },
}

#[derive(Clone, Debug)]
pub struct Control {
    pub id: u32,
    pub name: String,
    pub least: i32,
    pub most: i32,
    pub step: i32,
    pub usual: i32,
    pub value: Option<i32>,
    /// Why it cannot be set now; e.g. the exposure while the camera sets it by itself.
    pub barred: Option<&'static str>,
}

/// A filled buffer that the driver handed over.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    pub index: usize,
    pub bytes: usize,
    pub sequence: u32,
    /// The driver says that the content is damaged.
    pub error: bool,
    /// When it was taken by `CLOCK_MONOTONIC`; `None` when the driver uses another clock.
    pub taken: Option<Duration>,
}

impl Device {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    #[expect(
        unsafe_code,
        reason = "V4L2 is ioctls; no crate wraps them without the faults named above"
    )]
    fn ioctl<T>(&self, request: vidioc::_IOC_TYPE, argument: &mut T) -> io::Result<()> {
        // The request's number holds the size of what the kernel reads and writes.
        let size = (request as usize >> 16) & 0x3FFF;
        assert!(size == size_of::<T>(), "the argument is the structure that the request names");
        loop {
            // SAFETY: the pointer is to a live, writable value of the size that the kernel takes from the request; none
            // of the requests used here follows pointers inside it.
            let done = unsafe {
                moq_v4l::v4l2::ioctl(
                    self.fd.as_raw_fd(),
                    request,
                    ptr::from_mut(argument).cast::<c_void>(),
                )
            };
            match done {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    pub fn capability(&self) -> io::Result<Capability> {
        let mut found: sys::v4l2_capability = zeroed();
        self.ioctl(vidioc::VIDIOC_QUERYCAP, &mut found)?;
        let of_node = found.capabilities & sys::V4L2_CAP_DEVICE_CAPS != 0;
        Ok(Capability {
            driver: words(&found.driver),
            card: words(&found.card),
            bus: words(&found.bus_info),
            caps: if of_node { found.device_caps } else { found.capabilities },
        })
    }

    /// The pixel formats that it can deliver.
    pub fn formats(&self) -> Vec<FourCc> {
        let ask = |index| {
            let mut found: sys::v4l2_fmtdesc = zeroed();
            (found.index, found.type_) = (index, CAPTURE);
            self.ioctl(vidioc::VIDIOC_ENUM_FMT, &mut found).ok()?;
            Some(found.pixelformat.to_le_bytes())
        };
        (0..LIST_MAX).map_while(ask).collect()
    }

    #[expect(unsafe_code, reason = "the kernel's structure is a union")]
    pub fn sizes(&self, fourcc: FourCc) -> Vec<FrameSizes> {
        let ask = |index| {
            let mut found: sys::v4l2_frmsizeenum = zeroed();
            (found.index, found.pixel_format) = (index, u32::from_le_bytes(fourcc));
            self.ioctl(vidioc::VIDIOC_ENUM_FRAMESIZES, &mut found).ok()?;
            // SAFETY: all members are plain numbers, for which any bytes are valid; `type_` says which the kernel wrote.
            let (listed, range) =
                unsafe { (found.__bindgen_anon_1.discrete, found.__bindgen_anon_1.stepwise) };
            Some(if found.type_ == sys::v4l2_frmsizetypes_V4L2_FRMSIZE_TYPE_DISCRETE {
                FrameSizes::Listed(listed.width, listed.height)
            } else {
                let (least, most) =
                    ((range.min_width, range.min_height), (range.max_width, range.max_height));
                FrameSizes::Range { least, most }
            })
        };
        (0..LIST_MAX).map_while(ask).collect()
    }

    /// Frames per second at that size: each that is listed, or the fastest of a range.
    #[expect(unsafe_code, reason = "the kernel's structure is a union")]
    pub fn rates(&self, fourcc: FourCc, width: u32, height: u32) -> Vec<f32> {
        let ask = |index| {
            let mut found: sys::v4l2_frmivalenum = zeroed();
            (found.index, found.pixel_format) = (index, u32::from_le_bytes(fourcc));
            (found.width, found.height) = (width, height);
            self.ioctl(vidioc::VIDIOC_ENUM_FRAMEINTERVALS, &mut found).ok()?;
            // SAFETY: both members are plain numbers and begin with the shortest interval.
            Some(per_second(unsafe { found.__bindgen_anon_1.discrete }))
        };
        (0..LIST_MAX).map_while(ask).flatten().collect()
    }

    /// Asks for a format; the driver answers with what it gives instead, which may be anything.
    pub fn set_format(&self, fourcc: FourCc, width: usize, height: usize) -> io::Result<Format> {
        self.format(vidioc::VIDIOC_S_FMT, fourcc, width, height)
    }

    /// The same without changing anything.
    pub fn try_format(&self, fourcc: FourCc, width: usize, height: usize) -> io::Result<Format> {
        self.format(vidioc::VIDIOC_TRY_FMT, fourcc, width, height)
    }

    #[expect(unsafe_code, reason = "the kernel's structure is a union")]
    fn format(
        &self,
        request: vidioc::_IOC_TYPE,
        fourcc: FourCc,
        width: usize,
        height: usize,
    ) -> io::Result<Format> {
        let mut pix: sys::v4l2_pix_format = zeroed();
        (pix.width, pix.height) = (width as u32, height as u32);
        pix.pixelformat = u32::from_le_bytes(fourcc);
        pix.field = sys::v4l2_field_V4L2_FIELD_NONE;
        let mut asked: sys::v4l2_format = zeroed();
        asked.type_ = CAPTURE;
        asked.fmt.pix = pix;
        self.ioctl(request, &mut asked)?;
        // SAFETY: for the type CAPTURE the kernel writes `pix`; it is plain numbers.
        let got = unsafe { asked.fmt.pix };
        Ok(Format {
            fourcc: got.pixelformat.to_le_bytes(),
            width: got.width as usize,
            height: got.height as usize,
            stride: got.bytesperline as usize,
            size: got.sizeimage as usize,
            full_range: got.quantization == sys::v4l2_quantization_V4L2_QUANTIZATION_FULL_RANGE,
        })
    }

    /// Asks for a frame rate; what the driver gives, where it tells.
    #[expect(unsafe_code, reason = "the kernel's structure is a union")]
    pub fn set_rate(&self, fps: f32) -> Option<f32> {
        let mut asked: sys::v4l2_streamparm = zeroed();
        asked.type_ = CAPTURE;
        // In thousandths, so that 7.5 can be said.
        let interval =
            sys::v4l2_fract { numerator: 1000, denominator: (fps * 1000.0).round() as u32 };
        let mut capture: sys::v4l2_captureparm = zeroed();
        capture.timeperframe = interval;
        asked.parm.capture = capture;
        self.ioctl(vidioc::VIDIOC_S_PARM, &mut asked).ok()?;
        // SAFETY: for the type CAPTURE the kernel writes `capture`; it is plain numbers.
        per_second(unsafe { asked.parm.capture }.timeperframe)
    }

    /// All controls that can be shown as a number.
    pub fn controls(&self) -> Vec<Control> {
        let (mut controls, mut after) = (Vec::new(), 0);
        while controls.len() < CONTROLS_MAX {
            match self.query_control(after | sys::V4L2_CTRL_FLAG_NEXT_CTRL) {
                // A driver that does not move on would be asked for ever.
                Ok((id, control)) if id > after => {
                    after = id;
                    controls.extend(control);
                }
                _ => break,
            }
        }
        controls
    }

    pub fn control(&self, id: u32) -> Option<Control> {
        self.query_control(id).ok()?.1
    }

    /// The id, and the control if it is one with a number.
    fn query_control(&self, id: u32) -> io::Result<(u32, Option<Control>)> {
        let mut found: sys::v4l2_queryctrl = zeroed();
        found.id = id;
        self.ioctl(vidioc::VIDIOC_QUERYCTRL, &mut found)?;
        let numbers = [
            sys::v4l2_ctrl_type_V4L2_CTRL_TYPE_INTEGER,
            sys::v4l2_ctrl_type_V4L2_CTRL_TYPE_BOOLEAN,
            sys::v4l2_ctrl_type_V4L2_CTRL_TYPE_MENU,
            sys::v4l2_ctrl_type_V4L2_CTRL_TYPE_INTEGER_MENU,
        ];
        if !numbers.contains(&found.type_) || found.flags & sys::V4L2_CTRL_FLAG_DISABLED != 0 {
            return Ok((found.id, None));
        }
        let mut now = sys::v4l2_control { id: found.id, value: 0 };
        let value = self.ioctl(vidioc::VIDIOC_G_CTRL, &mut now).ok().map(|()| now.value);
        let barred = [
            (sys::V4L2_CTRL_FLAG_READ_ONLY, "it can only be read"),
            (sys::V4L2_CTRL_FLAG_INACTIVE, "another control sets it"),
            (sys::V4L2_CTRL_FLAG_GRABBED, "it is in use"),
        ];
        let barred =
            barred.into_iter().find(|(flag, _)| found.flags & flag != 0).map(|(_, why)| why);
        let (least, most, step, usual) =
            (found.minimum, found.maximum, found.step, found.default_value);
        let control = Control {
            id: found.id,
            name: words(&found.name),
            least,
            most,
            step,
            usual,
            value,
            barred,
        };
        Ok((found.id, Some(control)))
    }

    pub fn set_control(&self, id: u32, value: i32) -> io::Result<()> {
        self.ioctl(vidioc::VIDIOC_S_CTRL, &mut sys::v4l2_control { id, value })
    }

    /// Waits until a buffer is filled, the camera fails, or the time is over; `false` when it is over.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        wait_for(&mut fds, patience)
    }
}

/// `poll(2)`; a signal counts as the time being over.
pub fn wait_for(fds: &mut [PollFd<'_>], patience: Duration) -> io::Result<bool> {
    let limit =
        Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    match rustix::event::poll(fds, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Buffers shared with the driver, and the stream that fills them. Owns the device: both are dropped together, so that a
/// camera that was pulled gives its number back.
#[derive(Debug)]
pub struct Stream {
    buffers: Vec<Mapping>,
    device: Device,
}

impl Stream {
    /// Maps the buffers, queues them all and starts.
    pub fn start(device: Device, buffers: u32) -> io::Result<Self> {
        let mut request: sys::v4l2_requestbuffers = zeroed();
        (request.count, request.type_, request.memory) = (buffers, CAPTURE, MMAP);
        device.ioctl(vidioc::VIDIOC_REQBUFS, &mut request)?;
        // Each buffer is at most a few megabytes; a driver that gives more than was asked for has its reasons.
        let mut stream = Self { buffers: Vec::new(), device };
        for index in 0..request.count.min(32) {
            let mut buffer = blank_buffer(index);
            stream.device.ioctl(vidioc::VIDIOC_QUERYBUF, &mut buffer)?;
            stream.buffers.push(Mapping::new(&stream.device.fd, &buffer)?);
        }
        if stream.buffers.is_empty() {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the driver gives no buffers"));
        }
        for index in 0..stream.buffers.len() {
            stream.give_back(index)?;
        }
        let mut kind = CAPTURE as i32;
        stream.device.ioctl(vidioc::VIDIOC_STREAMON, &mut kind)?;
        Ok(stream)
    }

    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        self.device.wait(patience)
    }

    /// The next filled buffer; `None` when there is none after all.
    pub fn take(&mut self) -> io::Result<Option<Filled>> {
        let mut buffer = blank_buffer(0);
        match self.device.ioctl(vidioc::VIDIOC_DQBUF, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        let monotonic = buffer.flags & sys::V4L2_BUF_FLAG_TIMESTAMP_MASK
            == sys::V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
        let index = buffer.index as usize;
        if index >= self.buffers.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the driver names a buffer that there is not",
            ));
        }
        Ok(Some(Filled {
            index,
            bytes: buffer.bytesused as usize,
            sequence: buffer.sequence,
            error: buffer.flags & sys::V4L2_BUF_FLAG_ERROR != 0,
            taken: monotonic.then(|| {
                let (seconds, micros) =
                    (buffer.timestamp.tv_sec.max(0), buffer.timestamp.tv_usec.clamp(0, 999_999));
                Duration::new(seconds as u64, micros as u32 * 1000)
            }),
        }))
    }

    /// What is in a buffer that was taken and not yet given back.
    pub fn bytes(&self, filled: &Filled) -> &[u8] {
        let mapped = self.buffers.get(filled.index).map_or(&[][..], Mapping::bytes);
        &mapped[..filled.bytes.min(mapped.len())]
    }

    /// Lets the driver fill the buffer again.
    pub fn give_back(&mut self, index: usize) -> io::Result<()> {
        self.device.ioctl(vidioc::VIDIOC_QBUF, &mut blank_buffer(index as u32))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut kind = CAPTURE as i32;
        // A camera that is gone refuses, and there is nothing more to do about it.
        self.device.ioctl(vidioc::VIDIOC_STREAMOFF, &mut kind).ok();
    }
}

/// One buffer of the driver in our memory.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

#[expect(
    unsafe_code,
    reason = "the mapping belongs to this value alone, whichever thread holds it"
)]
// SAFETY: it is memory of the whole process; `Stream` gives it out only behind `&self` and nothing writes to it from here.
unsafe impl Send for Mapping {}

impl Mapping {
    #[expect(unsafe_code, reason = "mapping the driver's memory is the kernel's interface")]
    fn new(fd: &OwnedFd, buffer: &sys::v4l2_buffer) -> io::Result<Self> {
        let length = buffer.length as usize;
        // SAFETY: QUERYBUF with memory MMAP wrote `offset`; a new mapping at an address of the kernel's choice touches
        // nothing that exists.
        let mapped = unsafe {
            let (protection, offset) =
                (ProtFlags::READ | ProtFlags::WRITE, u64::from(buffer.m.offset));
            rustix::mm::mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, fd, offset)
        }?;
        let start = NonNull::new(mapped).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    #[expect(unsafe_code, reason = "the driver's memory is known by address and length only")]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `length` bytes long and lives as long as `self`. The driver writes to it only
        // between QBUF and DQBUF, and `Stream::bytes` is asked for a buffer that was taken out.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<u8>(), self.length) }
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "the counterpart of mapping")]
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; the borrow of `bytes` has ended.
        unsafe { rustix::mm::munmap(self.start.as_ptr(), self.length) }.ok();
    }
}

fn blank_buffer(index: u32) -> sys::v4l2_buffer {
    let mut buffer: sys::v4l2_buffer = zeroed();
    (buffer.index, buffer.type_, buffer.memory) = (index, CAPTURE, MMAP);
    buffer
}

/// A structure of the kernel before it is filled.
#[expect(unsafe_code, reason = "the structures have unions, and so no Default")]
fn zeroed<T: KernelStruct>() -> T {
    // SAFETY: see `KernelStruct`.
    unsafe { std::mem::zeroed() }
}

/// Structures for which all zeroes is a valid value: numbers, arrays of them, and null pointers.
trait KernelStruct {}
impl KernelStruct for sys::v4l2_capability {}
impl KernelStruct for sys::v4l2_fmtdesc {}
impl KernelStruct for sys::v4l2_frmsizeenum {}
impl KernelStruct for sys::v4l2_frmivalenum {}
impl KernelStruct for sys::v4l2_pix_format {}
impl KernelStruct for sys::v4l2_format {}
impl KernelStruct for sys::v4l2_captureparm {}
impl KernelStruct for sys::v4l2_streamparm {}
impl KernelStruct for sys::v4l2_queryctrl {}
impl KernelStruct for sys::v4l2_requestbuffers {}
impl KernelStruct for sys::v4l2_buffer {}

fn per_second(interval: sys::v4l2_fract) -> Option<f32> {
    let fps = f64::from(interval.denominator) / f64::from(interval.numerator);
    (fps.is_finite() && fps > 0.0).then_some(fps as f32)
}

/// A name that a device gave itself: up to the NUL, and nothing that could steer a terminal or break a log line.
fn words(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .collect::<String>()
        .trim()
        .to_owned()
}

/// As people write it: "MJPG", "Y8  " without the blanks.
pub fn fourcc_name(fourcc: FourCc) -> String {
    // The highest bit says that bytes stand the other way round.
    let [a, b, c, d] = fourcc;
    words(&[a, b, c, d & 0x7F]) + if d & 0x80 == 0 { "" } else { "-BE" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cut_inside_a_character_or_with_control_characters_is_only_a_name() {
        assert_eq!(words(b"Kamera \xC3\xBCber alles\0rest"), "Kamera über alles");
        assert_eq!(words(b"cut \xC3"), "cut \u{FFFD}");
        assert_eq!(words(b"\x1b[31mred\n\0"), "[31mred");
    }

    #[test]
    fn formats_are_named_as_people_write_them() {
        assert_eq!(
            [*b"MJPG", *b"Y8  ", [b'Y', b'1', b'6', 0xA0]].map(fourcc_name),
            ["MJPG", "Y8", "Y16-BE"]
        );
    }

    #[test]
    fn what_is_no_camera_says_so_instead_of_panicking() {
        let device = Device::open(Path::new("/dev/null")).unwrap();
        assert!(
            device.capability().is_err()
                && device.formats().is_empty()
                && device.controls().is_empty()
        );
        assert!(device.set_rate(10.0).is_none() && device.control(1).is_none());
        assert!(device.set_format(*b"MJPG", 640, 480).is_err());
        assert!(Stream::start(device, 4).is_err());
    }

    #[test]
    fn a_senseless_interval_is_no_rate() {
        let rate = |numerator, denominator| per_second(sys::v4l2_fract { numerator, denominator });
        assert_eq!(
            [rate(1, 30), rate(0, 30), rate(1, 0), rate(2, 15)],
            [Some(30.0), None, None, Some(7.5)]
        );
    }
}
