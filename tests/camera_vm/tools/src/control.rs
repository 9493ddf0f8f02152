//! Sets a control of a camera by its name, to make the kernel's test driver fail on demand:
//! `control NODE NAME VALUE`.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

/// `struct v4l2_queryctrl` and `struct v4l2_control`.
#[repr(C)]
#[derive(Default)]
struct Query {
    id: u32,
    kind: u32,
    name: [u8; 32],
    rest: [u32; 7],
}

#[repr(C)]
struct Control {
    id: u32,
    value: i32,
}

const QUERYCTRL: libc::c_ulong = 0xC044_5624;
const S_CTRL: libc::c_ulong = 0xC008_561C;
const NEXT: u32 = 0x8000_0000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [node, name, value] = args.as_slice() else { return Err("usage: control NODE NAME VALUE".into()) };
    let camera = OpenOptions::new().read(true).write(true).open(node)?;
    let mut found = Query { id: NEXT, ..Query::default() };
    while ioctl(&camera, QUERYCTRL, &mut found) {
        if found.name.starts_with(name.as_bytes()) {
            let mut control = Control { id: found.id, value: value.parse()? };
            return if ioctl(&camera, S_CTRL, &mut control) { Ok(()) } else { Err(std::io::Error::last_os_error().into()) };
        }
        found = Query { id: found.id | NEXT, ..Query::default() };
    }
    Err(format!("no control is called {name}").into())
}

fn ioctl<T>(camera: &File, request: libc::c_ulong, argument: &mut T) -> bool {
    // SAFETY: each request is called with the structure that its number names.
    unsafe { libc::ioctl(camera.as_raw_fd(), request, std::ptr::from_mut(argument)) == 0 }
}
