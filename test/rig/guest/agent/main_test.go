package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"floatip.io/floatip/test/rig/guest"
	"floatip.io/floatip/test/rig/guest/wire"
)

// connect joins a Channel and an agent by a socket, as a virtio-serial port joins them.
func connect(t *testing.T) *guest.Channel {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { _ = listener.Close(); <-ended })
	go func() {
		defer close(ended)
		port, err := listener.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = port.Close() })
		go func() { _ = serve(port, &replies{w: port}) }()
	}()
	channel, err := guest.Connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = channel.Close() })
	return channel
}

func TestRun(t *testing.T) {
	channel := connect(t)
	for _, row := range []struct {
		command, output string
		fails           bool
	}{
		{"echo hello", "hello\n", false},
		{"echo to stderr >&2", "to stderr\n", false},
		{"printf 'a\\nb'", "a\nb", false},
		{"echo partly; exit 3", "partly\n", true},
		{"kill -9 $$", "", true},
		{"sleep 60 & echo started", "started\n", false},
		{"head -c 2000000 /dev/zero | tr '\\0' x", strings.Repeat("x", wire.MaxOutput), false},
	} {
		output, err := channel.Run(t.Context(), row.command)
		if output != row.output || errors.Is(err, guest.ErrStatus) != row.fails || (err != nil) != row.fails {
			t.Errorf("%s: %d bytes %.20q, %v; want %d bytes %.20q, failing: %t", row.command, len(output), output, err,
				len(row.output), row.output, row.fails)
		}
	}
}

// A command that takes long does not hold up another.
func TestRunTwoAtOnce(t *testing.T) {
	channel := connect(t)
	gate := filepath.Join(t.TempDir(), "gate")
	first := make(chan error, 1)
	go func() {
		_, err := channel.Run(t.Context(), "until [ -e "+gate+" ]; do sleep 0.02; done")
		first <- err
	}()
	if _, err := channel.Run(t.Context(), "true"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
}

func TestRunGivesUp(t *testing.T) {
	channel := connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := channel.Run(ctx, "sleep 60"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that takes too long: %v, want %v", err, context.DeadlineExceeded)
	}
	if err := channel.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := channel.Run(t.Context(), "true"); err == nil {
		t.Error("a closed channel runs commands")
	}
}

func TestPortDevice(t *testing.T) {
	class := t.TempDir()
	for device, name := range map[string]string{"vport0p1": "org.qemu.guest_agent.0", "vport0p2": wire.Port} {
		if err := os.Mkdir(filepath.Join(class, device), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(class, device, "name"), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := portDevice(class); got != "/dev/vport0p2" || err != nil {
		t.Errorf("port %q, %v; want /dev/vport0p2", got, err)
	}
	if got, err := portDevice(t.TempDir()); err == nil {
		t.Errorf("without ports: %q, want an error", got)
	}
}
