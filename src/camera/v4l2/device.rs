//! The kernel's side of a camera: ioctls and mapped buffers as plain Rust values. The only `unsafe`
//! of the camera is here.
//!
//! The `v4l` crate (here its fork with the kernel's structures checked in) is used for structures
//! and numbers alone: its own stream waits for ever on a stalled camera, answers EINVAL for ever
//! after a time-out, and panics on a product name that is cut inside a character. What must hold
//! here: no call blocks (the descriptor is non-blocking, `wait` has a limit), nothing that a device
//! reports is trusted (names are cleaned, lists are cut off, lengths are checked against the mapping),
//! and a dropped stream leaves no mapping and no descriptor behind.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::time::Duration;

use moq_v4l::sys;
use moq_v4l::v4l2::vidioc;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::camera::retry::wait_for;

/// A pixel format as four letters, as the kernel names it.
pub type FourCc = [u8; 4];

const CAPTURE: u32 = sys::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE;
/// The way of image processors, which can hand out a picture in several buffers. Formats of one
/// plane are read.
const CAPTURE_PLANES: u32 = sys::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE;
const MMAP: u32 = sys::v4l2_memory_V4L2_MEMORY_MMAP;
/// No camera has lists longer than these; a device that never ends its list is cut off.
const LIST_MAX: u32 = 128;
const CONTROLS_MAX: usize = 256;

/// An open device node.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    /// The buffer type: `CAPTURE` or `CAPTURE_PLANES`.
    buffer_type: u32,
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
        self.caps & (sys::V4L2_CAP_VIDEO_CAPTURE | sys::V4L2_CAP_VIDEO_CAPTURE_MPLANE) != 0
            && self.caps & sys::V4L2_CAP_STREAMING != 0
    }

    /// Delivers a sensor's raw pictures, and only after its image processor was set up by
    /// `/dev/media`, which libcamera does.
    pub fn needs_media_controller(&self) -> bool {
        self.caps & sys::V4L2_CAP_IO_MC != 0
    }

    /// Captures only in the way of image processors.
    fn only_in_planes(&self) -> bool {
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
    /// Brightness uses all 256 values, as the driver reports.
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
    /// Where in the buffer the picture begins, and its length.
    pub start: usize,
    pub bytes: usize,
    pub sequence: u32,
    /// The driver reports that the content is damaged.
    pub error: bool,
    /// When it was taken by `CLOCK_MONOTONIC`; `None` when the driver uses another clock.
    pub taken: Option<Duration>,
}

impl Device {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let mut device = Self { fd, buffer_type: CAPTURE };
        // What is no camera is found out by whoever asks for its capability.
        if device.capability().is_ok_and(|it| it.only_in_planes()) {
            device.buffer_type = CAPTURE_PLANES;
        }
        Ok(device)
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
            // SAFETY: the pointer is to a live, writable value of the size that the kernel takes
            // from the request. The only pointer inside one is that of `BufferRequest`, to planes
            // that live as long.
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
            (found.index, found.type_) = (index, self.buffer_type);
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
            // SAFETY: all members are plain numbers, for which any bytes are valid; `type_` states
            // which the kernel wrote.
            let (listed, range) =
                unsafe { (found.__bindgen_anon_1.discrete, found.__bindgen_anon_1.stepwise) };
            Some(if found.type_ == sys::v4l2_frmsizetypes_V4L2_FRMSIZE_TYPE_DISCRETE {
                FrameSizes::Listed(listed.width, listed.height)
            } else {
                let least = (range.min_width, range.min_height);
                let most = (range.max_width, range.max_height);
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
        let mut asked: sys::v4l2_format = zeroed();
        asked.type_ = self.buffer_type;
        let fourcc = u32::from_le_bytes(fourcc);
        if self.buffer_type == CAPTURE_PLANES {
            let mut pix: sys::v4l2_pix_format_mplane = zeroed();
            (pix.width, pix.height) = (width as u32, height as u32);
            pix.pixelformat = fourcc;
            pix.field = sys::v4l2_field_V4L2_FIELD_NONE;
            pix.num_planes = 1;
            asked.fmt.pix_mp = pix;
            self.ioctl(request, &mut asked)?;
            // SAFETY: for the type CAPTURE_PLANES the kernel writes `pix_mp`; it is plain numbers.
            return format_of_plane(&unsafe { asked.fmt.pix_mp });
        }
        let mut pix: sys::v4l2_pix_format = zeroed();
        (pix.width, pix.height) = (width as u32, height as u32);
        pix.pixelformat = fourcc;
        pix.field = sys::v4l2_field_V4L2_FIELD_NONE;
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
            full_range: is_full_range(got.quantization),
        })
    }

    /// Requests a frame rate and returns the one that the driver reports.
    #[expect(unsafe_code, reason = "the kernel's structure is a union")]
    pub fn set_rate(&self, fps: f32) -> Option<f32> {
        let mut asked: sys::v4l2_streamparm = zeroed();
        asked.type_ = self.buffer_type;
        // In thousandths, so that 7.5 can be given.
        let interval =
            sys::v4l2_fract { numerator: 1000, denominator: (fps * 1000.0).round() as u32 };
        let mut capture: sys::v4l2_captureparm = zeroed();
        capture.timeperframe = interval;
        asked.parm.capture = capture;
        self.ioctl(vidioc::VIDIOC_S_PARM, &mut asked).ok()?;
        // SAFETY: for both types the kernel writes `capture`; it is plain numbers.
        per_second(unsafe { asked.parm.capture }.timeperframe)
    }

    /// All controls that can be shown as a number.
    pub fn controls(&self) -> Vec<Control> {
        let mut controls = Vec::new();
        let mut after = 0;
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
        let least = found.minimum;
        let most = found.maximum;
        let step = found.step;
        let usual = found.default_value;
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

    /// Waits until a buffer is filled, the camera fails, or the time is over; `false` when it is
    /// over.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        wait_for(&mut fds, patience)
    }
}

/// Buffers shared with the driver, and the stream that fills them. Owns the device: both are
/// dropped together, so that a camera that was pulled gives its number back.
#[derive(Debug)]
pub struct Stream {
    buffers: Vec<Mapping>,
    device: Device,
}

impl Stream {
    /// Maps the buffers, queues them all and starts.
    pub fn start(device: Device, buffers: u32) -> io::Result<Self> {
        let mut request: sys::v4l2_requestbuffers = zeroed();
        (request.count, request.type_, request.memory) = (buffers, device.buffer_type, MMAP);
        device.ioctl(vidioc::VIDIOC_REQBUFS, &mut request)?;
        // Each buffer is at most a few megabytes; a driver that gives more than was asked for has
        // its reasons.
        let mut stream = Self { buffers: Vec::new(), device };
        for index in 0..request.count.min(32) {
            let mut buffer = BufferRequest::new(stream.device.buffer_type, index);
            buffer.send(&stream.device, vidioc::VIDIOC_QUERYBUF)?;
            let (offset, length) = buffer.place();
            stream.buffers.push(Mapping::new(&stream.device.fd, offset, length)?);
        }
        if stream.buffers.is_empty() {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the driver gives no buffers"));
        }
        for index in 0..stream.buffers.len() {
            stream.give_back(index)?;
        }
        let mut kind = stream.device.buffer_type as i32;
        stream.device.ioctl(vidioc::VIDIOC_STREAMON, &mut kind)?;
        Ok(stream)
    }

    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        self.device.wait(patience)
    }

    /// The next filled buffer; `None` when there is none after all.
    pub fn take(&mut self) -> io::Result<Option<Filled>> {
        let mut request = BufferRequest::new(self.device.buffer_type, 0);
        match request.send(&self.device, vidioc::VIDIOC_DQBUF) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        let buffer = &request.buffer;
        let monotonic = buffer.flags & sys::V4L2_BUF_FLAG_TIMESTAMP_MASK
            == sys::V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
        let index = buffer.index as usize;
        if index >= self.buffers.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the driver names a buffer that there is not",
            ));
        }
        let content = request.content();
        Ok(Some(Filled {
            index,
            start: content.start,
            bytes: content.len(),
            sequence: buffer.sequence,
            error: buffer.flags & sys::V4L2_BUF_FLAG_ERROR != 0,
            taken: monotonic.then(|| {
                let seconds = buffer.timestamp.tv_sec.max(0);
                let micros = buffer.timestamp.tv_usec.clamp(0, 999_999);
                Duration::new(seconds as u64, micros as u32 * 1000)
            }),
        }))
    }

    /// What is in a buffer that was taken and not yet given back.
    pub fn bytes(&self, filled: &Filled) -> &[u8] {
        let mapped = self.buffers.get(filled.index).map_or(&[][..], Mapping::bytes);
        let start = filled.start.min(mapped.len());
        let end = start.saturating_add(filled.bytes).min(mapped.len());
        &mapped[start..end]
    }

    /// Lets the driver fill the buffer again.
    pub fn give_back(&mut self, index: usize) -> io::Result<()> {
        let mut request = BufferRequest::new(self.device.buffer_type, index as u32);
        request.send(&self.device, vidioc::VIDIOC_QBUF)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut kind = self.device.buffer_type as i32;
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
// SAFETY: it is memory of the whole process; `Stream` gives it out only behind `&self` and nothing
// writes to it from here.
unsafe impl Send for Mapping {}

impl Mapping {
    #[expect(unsafe_code, reason = "mapping the driver's memory is the kernel's interface")]
    fn new(fd: &OwnedFd, offset: u32, length: usize) -> io::Result<Self> {
        // SAFETY: QUERYBUF with memory MMAP gave `offset`; a new mapping at an address of the
        // kernel's choice touches nothing that exists.
        let mapped = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let offset = u64::from(offset);
            rustix::mm::mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, fd, offset)
        }?;
        let start = NonNull::new(mapped).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    #[expect(unsafe_code, reason = "the driver's memory is known by address and length only")]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `length` bytes long and lives as long as `self`. The
        // driver writes to it only between QBUF and DQBUF, and `Stream::bytes` is asked for a
        // buffer that was taken out.
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

/// A question about one buffer, with room for its planes.
struct BufferRequest {
    buffer: sys::v4l2_buffer,
    /// Used with `CAPTURE_PLANES`. Formats of one plane are agreed on, and a driver that has more
    /// all the same finds room.
    planes: [sys::v4l2_plane; PLANES_MAX],
}

/// `VIDEO_MAX_PLANES` of `linux/videodev2.h`.
const PLANES_MAX: usize = 8;

impl BufferRequest {
    fn new(buffer_type: u32, index: u32) -> Self {
        let mut buffer: sys::v4l2_buffer = zeroed();
        (buffer.index, buffer.type_, buffer.memory) = (index, buffer_type, MMAP);
        Self { buffer, planes: [zeroed(); PLANES_MAX] }
    }

    fn is_in_planes(&self) -> bool {
        self.buffer.type_ == CAPTURE_PLANES
    }

    fn send(&mut self, device: &Device, request: vidioc::_IOC_TYPE) -> io::Result<()> {
        if self.is_in_planes() {
            // Here, and not in `new`: the planes do not move during the call.
            self.buffer.m.planes = self.planes.as_mut_ptr();
            self.buffer.length = PLANES_MAX as u32;
        }
        device.ioctl(request, &mut self.buffer)
    }

    /// Offset and length of the buffer, after QUERYBUF.
    #[expect(unsafe_code, reason = "the kernel's structures are unions")]
    fn place(&self) -> (u32, usize) {
        let [plane, ..] = &self.planes;
        // SAFETY: with memory MMAP the kernel writes the offset, into the plane or the buffer; all
        // members are plain numbers, for which any bytes are valid.
        let (in_plane, in_buffer) = unsafe { (plane.m.mem_offset, self.buffer.m.offset) };
        if self.is_in_planes() {
            (in_plane, plane.length as usize)
        } else {
            (in_buffer, self.buffer.length as usize)
        }
    }

    /// Where in the buffer the picture is, after DQBUF.
    fn content(&self) -> std::ops::Range<usize> {
        if !self.is_in_planes() {
            return 0..self.buffer.bytesused as usize;
        }
        let [plane, ..] = &self.planes;
        // `bytesused` counts what stands before the picture.
        let start = plane.data_offset as usize;
        start..(plane.bytesused as usize).max(start)
    }
}

/// The format of a picture in one plane.
fn format_of_plane(got: &sys::v4l2_pix_format_mplane) -> io::Result<Format> {
    if got.num_planes != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "a format of several planes"));
    }
    let [plane, ..] = got.plane_fmt;
    Ok(Format {
        fourcc: got.pixelformat.to_le_bytes(),
        width: got.width as usize,
        height: got.height as usize,
        stride: plane.bytesperline as usize,
        size: plane.sizeimage as usize,
        full_range: is_full_range(got.quantization.into()),
    })
}

fn is_full_range(quantization: u32) -> bool {
    quantization == sys::v4l2_quantization_V4L2_QUANTIZATION_FULL_RANGE
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
impl KernelStruct for sys::v4l2_pix_format_mplane {}
impl KernelStruct for sys::v4l2_plane {}
impl KernelStruct for sys::v4l2_plane_pix_format {}
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

/// A name that a device gave itself: up to the NUL, and nothing that could steer a terminal or
/// break a log line.
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
    // The highest bit marks the other byte order.
    let [a, b, c, d] = fourcc;
    words(&[a, b, c, d & 0x7F]) + if d & 0x80 == 0 { "" } else { "-BE" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_decoded_lossily() {
        assert_eq!(words(b"Kamera \xC3\xBCber alles\0rest"), "Kamera über alles");
        assert_eq!(words(b"cut \xC3"), "cut \u{FFFD}");
        assert_eq!(words(b"\x1b[31mred\n\0"), "[31mred");
    }

    #[test]
    fn fourcc_formats_have_readable_names() {
        assert_eq!(
            [*b"MJPG", *b"Y8  ", [b'Y', b'1', b'6', 0xA0]].map(fourcc_name),
            ["MJPG", "Y8", "Y16-BE"]
        );
    }

    #[test]
    fn non_camera_device_returns_errors() {
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
    fn picture_in_plane_has_its_place() {
        let mut request = BufferRequest::new(CAPTURE_PLANES, 3);
        request.planes[0].length = 4096;
        request.planes[0].m.mem_offset = 0x4000;
        request.planes[0].data_offset = 64;
        request.planes[0].bytesused = 1064;
        assert_eq!((request.place(), request.content()), ((0x4000, 4096), 64..1064));
        request.planes[0].bytesused = 0;
        assert_eq!(request.content(), 64..64);
        let mut request = BufferRequest::new(CAPTURE, 3);
        request.buffer.m.offset = 0x8000;
        (request.buffer.length, request.buffer.bytesused) = (512, 500);
        assert_eq!((request.place(), request.content()), ((0x8000, 512), 0..500));
    }

    #[test]
    fn format_of_several_planes_is_refused() {
        let mut got: sys::v4l2_pix_format_mplane = zeroed();
        (got.width, got.height, got.num_planes) = (640, 480, 1);
        got.pixelformat = u32::from_le_bytes(*b"NV12");
        let plane =
            sys::v4l2_plane_pix_format { sizeimage: 460_800, bytesperline: 640, ..zeroed() };
        got.plane_fmt[0] = plane;
        let format = format_of_plane(&got).unwrap();
        assert_eq!((format.fourcc, format.stride, format.size), (*b"NV12", 640, 460_800));
        got.num_planes = 2;
        assert!(format_of_plane(&got).is_err());
    }

    #[test]
    fn zero_frame_interval_has_no_rate() {
        let rate = |numerator, denominator| per_second(sys::v4l2_fract { numerator, denominator });
        assert_eq!(
            [rate(1, 30), rate(0, 30), rate(1, 0), rate(2, 15)],
            [Some(30.0), None, None, Some(7.5)]
        );
    }
}
