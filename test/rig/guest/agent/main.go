// Command agent runs inside the rig's guest and executes what the rig asks for over a virtio-serial port.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"floatip.io/floatip/test/rig/guest/wire"
)

// hostAway is how long to wait before reading again while nobody has the port's other end open: the driver then
// answers end of file at once (drivers/char/virtio_console.c, port_fops_read).
const hostAway = 50 * time.Millisecond

func main() {
	if len(os.Args) == 3 && os.Args[1] == echoCommand {
		fmt.Fprintln(os.Stderr, echo(os.Args[2]))
		os.Exit(1)
	}
	// init starts it again.
	fmt.Fprintln(os.Stderr, "guest agent:", run())
	os.Exit(1)
}

// run serves the port; it returns only when that is over, so never nil.
func run() error {
	path, err := portDevice("/sys/class/virtio-ports")
	if err != nil {
		return err
	}
	port, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the control port: %w", err)
	}
	return serve(port, &replies{w: port})
}

// portDevice finds the device of our port; without udev there is no /dev/virtio-ports.
func portDevice(class string) (string, error) {
	names, err := filepath.Glob(filepath.Join(class, "*", "name"))
	if err != nil {
		return "", err
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(content)) == wire.Port {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(name))), nil
		}
	}
	return "", fmt.Errorf("no virtio-serial port is named %s", wire.Port)
}

// serve reads requests until the port fails for good.
func serve(port io.Reader, out *replies) error {
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			time.Sleep(hostAway)
			continue
		}
		if err != nil {
			return fmt.Errorf("read the control port: %w", err)
		}
		var request wire.Request
		if json.Unmarshal(line, &request) != nil || request.ID == "" {
			continue // the rest of a line that an earlier client left unfinished
		}
		go func() { out.send(execute(request)) }()
	}
}

func execute(request wire.Request) wire.Reply {
	cmd := exec.CommandContext(context.Background(), "/bin/sh", "-c", request.Command)
	output := &bounded{}
	cmd.Stdout, cmd.Stderr = output, output
	// A command may leave a background process that holds its output open: the reply does not wait for it.
	cmd.WaitDelay = 100 * time.Millisecond
	err := cmd.Run()
	reply := wire.Reply{ID: request.ID, Status: -1, Output: output.String()}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		reply.Status = 0
	case errors.As(err, &exit):
		reply.Status = exit.ExitCode()
	default:
		reply.Output += err.Error()
	}
	return reply
}

// replies writes whole lines, one at a time.
type replies struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (r *replies) send(reply wire.Reply) {
	line, err := json.Marshal(reply)
	if err != nil {
		panic("guest agent: a reply of strings and numbers does not marshal: " + err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.w.Write(append(line, '\n')); err != nil {
		fmt.Fprintln(os.Stderr, "guest agent: reply:", err)
	}
}

// bounded keeps the first MaxOutput bytes and drops the rest.
type bounded struct {
	mu   sync.Mutex // guards text; Stdout and a background process may write at once
	text []byte
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p[:min(len(p), wire.MaxOutput-len(b.text))]...)
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}
