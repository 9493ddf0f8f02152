"""A disk with a volatile write cache, served to a virtual machine over NBD, whose power can be cut.

What a disk may do when its power goes, it does here: what was written and not yet flushed is there, or is not, or is there in
part, sector by sector, in no order. What a flush (or a write with FUA) was answered for is there. Killing an emulator alone
would show less: what its guest has written is then in the host's memory and survives, flushed or not.

Not modelled: sectors of half a write, and neighbours of a written block that are lost with it, as cheap cards lose them.
"""

import os
import random
import socket
import struct
import threading

SECTOR = 512
REQUEST, OPTION = struct.Struct(">IHHQQI"), struct.Struct(">QII")
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
OPTION_EXPORT_NAME, OPTION_ABORT, OPTION_INFO, OPTION_GO = 1, 2, 6, 7
HAS_FLAGS, SEND_FLUSH, SEND_FUA = 1, 4, 8
FUA = 1
EIO = 5


class Disk:
    """`durable` is what the medium holds; `seen` is what the machine reads back: the medium and the cache over it."""

    def __init__(self, image, address, lying=False):
        self.durable, self.lying = bytearray(image), lying
        self.seen, self.cache = bytearray(image), []
        self.lock, self.dark = threading.Condition(), False
        self.writes = self.flushes = self.bytes = 0
        self.cut_at = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(address))
        self.listener.listen(1)
        threading.Thread(target=self.serve, daemon=True).start()

    def cut_after(self, writes):
        """The power goes as that many more writes have come in; the last of them is still in the cache."""
        with self.lock:
            self.cut_at = self.writes + writes

    def until_dark(self, patience):
        with self.lock:
            return self.lock.wait_for(lambda: self.dark, patience)

    def cut(self, kept):
        """The power goes now, if it has not yet. Of each sector in the cache `kept` is the chance to have reached the medium.
        Gives how many writes were in the cache, and how many of them are wholly and in part on the medium."""
        with self.lock:
            self.dark = True
            self.lock.notify_all()
            whole = torn = 0
            for offset, data in self.cache:
                there = [random.random() < kept for _ in range(len(data) // SECTOR)]
                for at, arrived in enumerate(there):
                    if arrived:
                        begin = at * SECTOR
                        self.durable[offset + begin : offset + begin + SECTOR] = data[begin : begin + SECTOR]
                whole += all(there)
                torn += any(there) and not all(there)
            return len(self.cache), whole, torn

    def close(self):
        self.listener.close()

    # The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

    def serve(self):
        try:
            while True:
                peer, _ = self.listener.accept()
                threading.Thread(target=self.attend, args=(peer,), daemon=True).start()
        except OSError:
            pass

    def attend(self, peer):
        try:
            with peer, peer.makefile("rb") as source:
                if self.greet(peer, source):
                    while self.answer(peer, source):
                        pass
        except (OSError, struct.error):
            # The machine was killed in the middle of something.
            pass

    def greet(self, peer, source):
        peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1))
        source.read(4)
        shape = struct.pack(">QH", len(self.seen), HAS_FLAGS | SEND_FLUSH | SEND_FUA)
        while True:
            _, option, length = OPTION.unpack(source.read(OPTION.size))
            source.read(length)
            reply = lambda kind, body=b"": peer.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(body)) + body)
            if option == OPTION_EXPORT_NAME:
                peer.sendall(shape + bytes(124))
                return True
            if option in (OPTION_GO, OPTION_INFO):
                reply(3, struct.pack(">H", 0) + shape)
                reply(1)
                if option == OPTION_GO:
                    return True
            elif option == OPTION_ABORT:
                reply(1)
                return False
            else:
                reply((1 << 31) | 1)

    def answer(self, peer, source):
        _, flags, command, handle, offset, length = REQUEST.unpack(source.read(REQUEST.size))
        if command == DISCONNECT:
            return False
        data = source.read(length) if command == WRITE else b""
        with self.lock:
            if self.dark:
                return False
            error = 0 if offset + length <= len(self.seen) else EIO
            if command == READ and not error:
                data = bytes(self.seen[offset : offset + length])
            elif command == WRITE and not error:
                self.write(offset, data)
                if self.dark:
                    return False
                data = b""
                if flags & FUA:
                    self.flush()
            elif command == FLUSH:
                self.flush()
            elif not error:
                error = EIO
        peer.sendall(struct.pack(">IIQ", 0x67446698, error, handle) + data)
        return True

    def write(self, offset, data):
        self.seen[offset : offset + len(data)] = data
        self.cache.append((offset, data))
        self.writes += 1
        self.bytes += len(data)
        if self.cut_at is not None and self.writes >= self.cut_at:
            self.dark = True
            self.lock.notify_all()

    def flush(self):
        self.flushes += 1
        if self.lying:
            return
        for offset, data in self.cache:
            self.durable[offset : offset + len(data)] = data
        self.cache.clear()


def save(image, path):
    """Sparse, so that an image costs what is in it."""
    with open(path, "wb") as file:
        for at in range(0, len(image), 1 << 16):
            part = image[at : at + (1 << 16)]
            if part.strip(b"\0"):
                file.seek(at)
                file.write(part)
        file.truncate(len(image))
    return os.fspath(path)
