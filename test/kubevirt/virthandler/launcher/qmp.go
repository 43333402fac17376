package launcher

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// monitor is a connection to qemu's machine protocol (qemu docs/interop/qmp-spec.txt).
type monitor struct {
	conn    net.Conn
	calls   sync.Mutex // one command at a time
	replies chan reply // closed when the connection ends
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// event is what qemu tells unasked.
type event struct {
	Name string `json:"event"`
	Data struct {
		Reason string `json:"reason"` // of SHUTDOWN
		Status string `json:"status"` // of MIGRATION
	} `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// at is when it happened.
func (e event) at() time.Time { return time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000) }

// monitorRedial is how often to look for qemu's socket while qemu starts.
const monitorRedial = 20 * time.Millisecond

// dialMonitor waits for qemu's socket and hands each later event to onEvent, in order.
func dialMonitor(ctx context.Context, path string, onEvent func(event)) (*monitor, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			m := &monitor{conn: conn, replies: make(chan reply)}
			go m.receive(onEvent)
			return m, m.do("qmp_capabilities", nil, nil)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("reach qemu's monitor: %w: %w", context.Cause(ctx), err)
		case <-time.After(monitorRedial):
		}
	}
}

func (m *monitor) receive(onEvent func(event)) {
	defer close(m.replies)
	lines := bufio.NewReader(m.conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var message struct {
			event
			reply
		}
		switch {
		case json.Unmarshal(line, &message) != nil:
		case message.Name != "":
			onEvent(message.event)
		case message.Return != nil || message.Error != nil:
			m.replies <- message.reply
		}
	}
}

// do runs a command and decodes what it returns, if result is not nil. It must not be called by onEvent.
func (m *monitor) do(command string, arguments, result any) error {
	m.calls.Lock()
	defer m.calls.Unlock()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("qemu %s: %w: %w", command, errGone, err)
	}
	answer, ok := <-m.replies
	switch {
	case !ok:
		return fmt.Errorf("qemu %s: %w", command, errGone)
	case answer.Error != nil:
		return fmt.Errorf("qemu %s: %s", command, answer.Error.Desc)
	case result != nil:
		return json.Unmarshal(answer.Return, result)
	}
	return nil
}

// errGone says that qemu ended before it answered.
var errGone = errors.New("qemu has ended")
