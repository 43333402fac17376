package unread

import "bytes"

// count is what the kernel has counted at the guest's device.
type count struct {
	read    uint64 // by qemu, or vhost-net
	dropped uint64 // since the device was full
}

// log numbers the packets to a guest, and knows which of them were read.
type log struct {
	seen   uint64  // packets so far
	frames []Frame // the last ones; that with the number seen is the last of them
	bytes  int

	// offset is the count of the kernel before the first packet that was seen, as far as is known: never more than it was,
	// and just that after a moment in which nothing was on the way.
	offset   int64
	compared bool
	// dropped is the kernel's count at that moment: all that was dropped by then lies before what is kept. Later ones may
	// be among it, or may not have been seen: a device without a carrier drops before anybody sees it.
	dropped uint64
}

// add takes a copy of the frame.
func (l *log) add(f []byte) {
	l.seen++
	l.frames = append(l.frames, bytes.Clone(f))
	l.bytes += len(f)
	for len(l.frames) > MaxFrames || l.bytes > MaxBytes {
		l.forget(1)
	}
}

func (l *log) forget(n int) {
	for _, f := range l.frames[:n] {
		l.bytes -= len(f)
	}
	clear(l.frames[:n])
	l.frames = l.frames[n:]
}

// missed notes packets that the socket had no room for. Where they belong nobody knows, so what came before is given up.
func (l *log) missed(packets uint64) {
	if packets > 0 {
		l.seen += packets
		l.forget(len(l.frames))
	}
}

// compare takes a count that was read before the packets up to now were: it is that of no later packet.
func (l *log) compare(c count) {
	offset := int64(c.read+c.dropped) - int64(l.seen)
	if !l.compared || offset >= l.offset {
		l.offset, l.dropped, l.compared = offset, c.dropped, true
	}
}

// take returns the frames that were not read by the time of the count, once.
func (l *log) take(c count) []Frame {
	if !l.compared {
		return nil
	}
	unread := int64(l.seen) - (int64(c.read+l.dropped) - l.offset)
	frames := l.frames[len(l.frames)-int(min(max(0, unread), int64(len(l.frames)))):]
	l.frames, l.bytes = nil, 0
	return frames
}
