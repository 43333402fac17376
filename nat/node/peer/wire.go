package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"floatip.io/floatip/nat/node/flows"
)

// ask is what a target says.
type ask struct {
	Version int `json:"version,omitempty"`
	// Machine is the UID of the VirtualMachineInstance.
	Machine string `json:"machine,omitempty"`
	// Pod is the name of the pod that the machine migrates into. An agent of an earlier version does not say it.
	Pod string `json:"pod,omitempty"`
	// Arrived: the guest was heard on the target.
	Arrived bool `json:"arrived,omitempty"`
	// Ago is how long ago that was, in nanoseconds.
	Ago time.Duration `json:"ago,omitempty"`
	// Frames: the target takes packets that the guest has not read. One that does not say so is sent none.
	Frames bool `json:"frames,omitempty"`
}

// update is what a source says.
type update struct {
	flows.Changes
	// Last: nothing follows.
	Last bool `json:"last,omitempty"`
	// Sent is when the source sent it, by its clock.
	Sent time.Time `json:"sent,omitzero"`
	// Heard is when the source last heard the guest, by its clock; with Last only, where it is known.
	Heard time.Time `json:"heard,omitzero"`
	// Silence is the time between that and the arrival as the source knows it, in nanoseconds: for a target that does not know
	// Heard.
	Silence *time.Duration `json:"silence,omitempty"`
	// Frames are packets that the guest has not read, each as package unread has it; after the arrival only.
	Frames [][]byte `json:"frames,omitempty"`
	// Refused says why there will be nothing.
	Refused string `json:"refused,omitempty"`
}

// ErrRefused: the source does not know of such a migration.
var ErrRefused = errors.New("the other agent refused")

// line is a connection on which JSON lines are exchanged. One goroutine reads, one writes.
type line struct {
	conn  net.Conn
	input *bufio.Reader
	wait  time.Duration // for each read and write
}

func newLine(conn net.Conn, wait time.Duration) *line {
	return &line{conn, bufio.NewReaderSize(conn, 64<<10), wait}
}

func (l *line) send(message any) error {
	raw, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(l.wait)); err != nil {
		return err
	}
	_, err = l.conn.Write(append(raw, '\n'))
	return err
}

// receive reads the next message. Who has to say something at some time only is waited for without a bound.
func (l *line) receive(into any) error { return l.receiveBy(time.Now().Add(l.wait), into) }

func (l *line) receiveAnyTime(into any) error { return l.receiveBy(time.Time{}, into) }

func (l *line) receiveBy(deadline time.Time, into any) error {
	if err := l.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	var raw []byte
	for {
		part, err := l.input.ReadSlice('\n')
		raw = append(raw, part...)
		if len(raw) > maxLine {
			return fmt.Errorf("a message of more than %d bytes", maxLine)
		}
		if err == nil {
			return json.Unmarshal(raw, into)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// sendUpdate sends changes in messages of a bounded size, with what u says besides in the last one.
func (l *line) sendUpdate(c flows.Changes, u update) error {
	for len(c.Put) > perLine || len(c.Remove) > perLine {
		puts, removals := min(len(c.Put), perLine), min(len(c.Remove), perLine)
		part := flows.Changes{Put: c.Put[:puts], Remove: c.Remove[:removals]}
		if err := l.tell(update{Changes: part}); err != nil {
			return err
		}
		c = flows.Changes{Put: c.Put[puts:], Remove: slices.Clone(c.Remove[removals:])}
	}
	u.Changes = c
	return l.tell(u)
}

// tell sends what a source says.
func (l *line) tell(u update) error {
	u.Sent = time.Now()
	return l.send(u)
}

// sendFrames sends packets in messages of a bounded size.
func (l *line) sendFrames(frames [][]byte) error {
	for len(frames) > 0 {
		n, bytes := 0, 0
		for n < len(frames) && (n == 0 || bytes+len(frames[n]) <= perFrames) {
			bytes += len(frames[n])
			n++
		}
		if err := l.tell(update{Frames: frames[:n]}); err != nil {
			return err
		}
		frames = frames[n:]
	}
	return nil
}

// closeWith closes the connection when ctx is done, so that reads and writes end. The function that it returns undoes it.
func closeWith(ctx context.Context, conn net.Conn) func() bool {
	return context.AfterFunc(ctx, func() { conn.Close() })
}
