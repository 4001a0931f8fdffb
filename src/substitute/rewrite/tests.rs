//! What a treatment changes in a checkpoint that is written here: each entry that goes and each that
//! comes. Real images are treated in tests/images.rs.

use super::*;
use crate::criu::images::image::{Image, build};

/// The mount of the container's root.
const ROOT: i32 = 5;

fn message(numbers: &[(u32, u64)]) -> Message<'static> {
    let mut message = Message::default();
    numbers.iter().for_each(|(field, value)| message.push_number(*field, *value));
    message
}

fn entry(kind: u64, id: u64, field: u32, body: &Message<'_>) -> Vec<u8> {
    let mut entry = message(&[(1, kind), (2, id)]);
    entry.push_bytes(field, &body.encode());
    entry.encode()
}

fn reg(id: u64, name: &str) -> Vec<u8> {
    let mut body = message(&[(1, id), (2, 2), (3, 7), (7, (ROOT << 1) as u64), (8, 100)]);
    body.push_bytes(6, name.as_bytes());
    entry(1, id, 3, &body)
}

fn unix(id: u64, inode: u64, peer: u64) -> Vec<u8> {
    let mut body = message(&[(2, inode), (3, 1), (4, 1), (5, 2), (6, 0), (8, peer), (12, 0)]);
    body.push_bytes(11, b"");
    entry(5, id, 16, &body)
}

fn epoll(id: u64, watched: &[u64]) -> Vec<u8> {
    let mut body = message(&[(1, id), (2, 2)]);
    watched.iter().for_each(|fd| body.push_bytes(4, &message(&[(2, *fd)]).encode()));
    entry(7, id, 9, &body)
}

fn tty(id: u64, sid: u64, rdev: u64) -> Vec<u8> {
    let mut tty = message(&[(1, id), (2, 3), (6, sid), (7, sid), (8, rdev)]);
    tty.push_bytes(9, b"settings");
    tty.encode()
}

fn packet(socket: u64, carries: u64) -> Vec<u8> {
    let mut packet = message(&[(1, socket), (2, 0)]);
    packet.push_bytes(4, &message(&[(1, 1), (2, carries)]).encode());
    packet.encode()
}

/// The process, and in it a descriptor of each open file: its number and type.
fn checkpoint() -> BTreeMap<String, Vec<u8>> {
    let fds = [
        (1, 10, 1),
        (3, 11, 2),
        (4, 12, 7),
        (5, 13, 5),
        (6, 14, 5),
        (7, 91, 1),
        (8, 16, 1),
        (9, 17, 1),
        (10, 20, 15),
        (11, 30, 11),
        (12, 31, 11),
    ];
    let fds = fds.map(|(fd, file, kind)| message(&[(1, file), (2, 0), (3, kind), (4, fd)]));
    let files = [
        reg(10, "/log"),
        entry(2, 11, 18, &message(&[(2, 77), (3, 0)])),
        epoll(12, &[1, 3]),
        unix(13, 100, 101),
        unix(14, 101, 100),
        reg(91, "/bin/x"),
        reg(16, "/ghost"),
        reg(17, "/linked"),
        reg(20, "/dev/net/tun"),
        entry(15, 20, 11, &message(&[(1, 20)])),
        entry(11, 30, 19, &message(&[(2, 5), (3, 0)])),
        entry(11, 31, 19, &message(&[(2, 4), (3, 0)])),
        reg(40, "/held/by/nobody"),
        reg(90, "/"),
        reg(41, "/ocicle/14"),
    ];
    let lock = FileLock { flag: 1, access: 1, pid: InnerPid(1), fd: 1, start: 0, length: 0 };
    let one = |fields: &[(u32, u64)]| vec![message(fields).encode()];
    let images = [
        ("inventory", ImageKind::Inventory, one(&[(1, 2)])),
        ("pstree", ImageKind::ProcessTree, one(&[(1, 1), (2, 0), (3, 1), (4, 1), (5, 1)])),
        ("ids-1", ImageKind::Ids, one(&[(1, 1), (2, 7), (3, 1)])),
        ("fs-1", ImageKind::Fs, one(&[(1, 90), (2, 90)])),
        ("mm-1", ImageKind::Mm, one(&[(8, 0), (9, 0), (12, 91)])),
        ("fdinfo-7", ImageKind::FdInfo, fds.map(|fd| fd.encode()).to_vec()),
        ("files", ImageKind::Files, files.to_vec()),
        (
            "remap-fpath",
            ImageKind::RemapPath,
            [one(&[(1, 16), (2, 1), (3, 1)]), one(&[(1, 17), (2, 41), (3, 0)])].concat(),
        ),
        ("tty-info", ImageKind::TtyInfo, vec![tty(5, 0, 0x502), tty(4, 9, 0x8800)]),
        ("filelocks", ImageKind::FileLocks, vec![lock.encode()]),
        ("sk-queues", ImageKind::SocketQueues, vec![packet(13, 10)]),
    ];
    images.map(|(name, kind, entries)| (format!("{name}.img"), build(kind, &entries))).into()
}

/// What an entry says, as far as a treatment may change it.
fn said(kind: ImageKind, message: &Message<'_>) -> Result<String, BadMessage> {
    Ok(match kind {
        ImageKind::Files => {
            let file = FileEntry::read(message)?;
            match &file.body {
                FileBody::Reg(reg) => format!(
                    "file {} {} mount {:?} flags {:?} position {} size {:?}",
                    file.id,
                    reg.name,
                    reg.mount,
                    file.flags,
                    reg.position.cast_signed(),
                    reg.size
                ),
                FileBody::Epoll { watched } => format!("epoll {} watches {watched:?}", file.id),
                FileBody::Unix(socket) => {
                    let shut = message.need_message(16, "usk")?.number(12);
                    format!("socket {} peer {} shut {shut:?}", file.id, socket.peer)
                }
                _ => format!("file {} {:?}", file.id, file.kind.kind()),
            }
        }
        ImageKind::FdInfo => {
            let fd = FdEntry::read(message)?;
            format!("fd {} is {} {:?}", fd.fd, fd.file, fd.kind.kind())
        }
        ImageKind::RemapPath => format!("remap of {}", Remap::read(message)?.file),
        ImageKind::TtyInfo => format!(
            "tty {} session {:?} settings {}",
            message.need_u32(1, "id")?,
            message.number(6),
            message.bytes(9).is_some()
        ),
        ImageKind::FileLocks => format!("lock through {}", FileLock::read(message)?.fd),
        ImageKind::SocketQueues => {
            let packet = crate::criu::images::entries::Packet::read(message)?;
            format!("packet of {} carries {:?}", packet.socket, packet.rights)
        }
        other => panic!("{other:?} is changed"),
    })
}

/// The lines of an image.
fn lines(name: &str, bytes: &[u8]) -> Vec<String> {
    let kind = match name {
        "files.img" => ImageKind::Files,
        "fdinfo-7.img" => ImageKind::FdInfo,
        "remap-fpath.img" => ImageKind::RemapPath,
        "tty-info.img" => ImageKind::TtyInfo,
        "filelocks.img" => ImageKind::FileLocks,
        "sk-queues.img" => ImageKind::SocketQueues,
        other => panic!("{other} is changed"),
    };
    Image::parse(kind, bytes.to_vec()).unwrap().read(|entry| said(kind, entry)).unwrap()
}

/// What the treatments take out of the images, behind a minus, and put into them, behind a plus.
fn changes(treatments: &[Treatment]) -> Result<Vec<String>> {
    let before = checkpoint();
    let dir = ImageDir::of_memory(Path::new("images"), before.clone());
    let images = Images::read(&dir).unwrap();
    let plan = Plan::of(&images, treatments)?;
    let mut changes = Vec::new();
    for (name, bytes) in changed_images(&dir, &images, &plan)? {
        let (was, is) = (lines(&name, &before[&name]), lines(&name, &bytes));
        changes.extend(was.iter().filter(|line| !is.contains(line)).map(|line| format!("-{line}")));
        changes.extend(is.iter().filter(|line| !was.contains(line)).map(|line| format!("+{line}")));
    }
    changes.sort();
    Ok(changes)
}

fn treated(id: u32, how: How, drop: bool) -> Treatment {
    Treatment { id: FileId(id), how, drop }
}

fn reopened() -> How {
    How::Reopen { path: "/f".into(), flags: 1, position: None }
}

#[track_caller]
fn assert_changes(id: u32, how: &How, drop: bool, expected: &[&str]) {
    let changes = changes(&[treated(id, how.clone(), drop)]).unwrap();
    assert_eq!(changes, expected, "{id} {how:?}");
}

#[test]
fn a_regular_file() {
    const WAS: &str = "-file 10 /log mount Some(5) flags Some(2) position 7 size Some(100)";
    const IS: &str = "+file 10 /ocicle/10 mount None flags Some(2) position 0 size None";
    assert_changes(10, &How::Inherit, false, &[IS, WAS]);
    let forgotten = ["+epoll 12 watches [3]", "-epoll 12 watches [1, 3]", "-lock through 1"];
    let dropped = [forgotten[0], IS, forgotten[1], WAS, forgotten[2]];
    assert_changes(10, &How::Inherit, true, &dropped);
    // Others may refer to an entry of type REG: it stays, and what referred to it goes.
    let closed = [
        forgotten[0],
        "+packet of 13 carries []",
        forgotten[1],
        "-fd 1 is 10 Reg",
        forgotten[2],
        "-packet of 13 carries [10]",
    ];
    assert_changes(10, &How::Close, true, &closed);
    let relaxed = "+file 10 /log mount Some(5) flags Some(2) position 3 size None";
    assert_changes(10, &How::Relax { position: Some(3) }, false, &[relaxed, WAS]);
}

#[test]
fn what_is_no_regular_file_becomes_one() {
    let opened = [
        "+fd 3 is 11 Reg",
        "+file 11 /f mount Some(5) flags Some(1) position -1 size None",
        "-fd 3 is 11 Pipe",
        "-file 11 Pipe",
    ];
    assert_changes(11, &reopened(), false, &opened);
    let closed =
        ["+epoll 12 watches [1]", "-epoll 12 watches [1, 3]", "-fd 3 is 11 Pipe", "-file 11 Pipe"];
    assert_changes(11, &How::Close, false, &closed);
    assert_changes(11, &How::Relax { position: None }, false, &[]);
    // Both halves of a tun device are one file.
    let tun = [
        "+fd 10 is 20 Reg",
        "+file 20 /ocicle/20 mount None flags Some(2) position 0 size None",
        "-fd 10 is 20 Tun",
        "-file 20 /dev/net/tun mount Some(5) flags Some(2) position 7 size Some(100)",
        "-file 20 Tun",
    ];
    assert_changes(20, &How::Inherit, false, &tun);
}

#[test]
fn what_was_tied_to_it_stays() {
    // The peer is alone, and what waited in the socket is gone.
    let socket = [
        "+fd 5 is 13 Reg",
        "+file 13 /ocicle/13 mount None flags Some(2) position 0 size None",
        "+socket 14 peer 0 shut Some(3)",
        "-fd 5 is 13 Unix",
        "-packet of 13 carries [10]",
        "-socket 13 peer 101 shut Some(0)",
        "-socket 14 peer 100 shut Some(0)",
    ];
    assert_changes(13, &How::Inherit, false, &socket);
    // The slave hangs.
    let master = [
        "+fd 11 is 30 Reg",
        "+file 30 /ocicle/30 mount None flags Some(0) position 0 size None",
        "+tty 4 session Some(0) settings false",
        "-fd 11 is 30 Tty",
        "-file 30 Tty",
        "-tty 4 session Some(9) settings true",
        "-tty 5 session Some(0) settings true",
    ];
    assert_changes(30, &How::Inherit, false, &master);
}

#[test]
fn a_file_that_is_also_used_otherwise_is_split() {
    // The program keeps its entry; the descriptor gets one with the first free identifier.
    let program = [
        "+fd 7 is 1 Reg",
        "+file 1 /ocicle/91 mount None flags Some(2) position 0 size None",
        "-fd 7 is 91 Reg",
    ];
    assert_changes(91, &How::Inherit, false, &program);
    assert_changes(91, &How::Close, false, &["-fd 7 is 91 Reg"]);
}

#[test]
fn a_file_whose_name_was_gone() {
    let ghost = [
        "+file 16 /ocicle/16 mount None flags Some(2) position 0 size None",
        "-file 16 /ghost mount Some(5) flags Some(2) position 7 size Some(100)",
        "-remap of 16",
    ];
    assert_changes(16, &How::Inherit, false, &ghost);
    // The other name is still removed, on the mount that it is on.
    let linked = [
        "+file 17 /ocicle/17 mount Some(5) flags Some(2) position 0 size None",
        "-file 17 /linked mount Some(5) flags Some(2) position 7 size Some(100)",
    ];
    assert_changes(17, &How::Inherit, false, &linked);
}

#[test]
fn a_name_that_the_container_has_is_not_given() {
    let changes = changes(&[treated(14, How::Inherit, false)]).unwrap();
    assert!(changes.iter().any(|line| line.starts_with("+file 14 /ocicle/14.1 ")), "{changes:?}");
}

#[test]
fn what_cannot_be_replaced() {
    for (id, how, why) in [
        (99, How::Inherit, "open file 99 cannot be replaced: there is no open file with this"),
        (40, How::Inherit, "open file 40 cannot be replaced: no file descriptor refers to it"),
        (10, How::Close, "open file 10 cannot be replaced: a message that waits in a socket"),
        (17, reopened(), "open file 17 cannot be replaced: its name was gone"),
    ] {
        let refusal = changes(&[treated(id, how, false)]).unwrap_err().to_string();
        assert!(refusal.starts_with(why), "{refusal}");
    }
    // All of them are said at once.
    let both = [99, 40].map(|id| treated(id, How::Inherit, false));
    assert_eq!(changes(&both).unwrap_err().to_string().lines().count(), 2);
}

#[test]
fn the_way_from_a_view_to_an_image() {
    for (to, from, way) in [
        ("/a/images/x.img", "/a/images/view/x.img", "../x.img"),
        ("/a/images/x.img", "/a/images/deep/er/x.img", "../../x.img"),
        ("/a/x.img", "/b/c/x.img", "../../a/x.img"),
        ("/a/x", "/a/y", "x"),
    ] {
        assert_eq!(relative(Path::new(to), Path::new(from)), Path::new(way), "{to} from {from}");
    }
}
