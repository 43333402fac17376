package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Subcommand is the first argument with which a program is to call Run; the second is the folder.
const Subcommand = "launcher"

// netns runs a function in a network namespace.
type netns interface {
	Do(f func() error) error
}

// Start makes the folder dir and a launcher for spec in the given namespace, by calling this program with Subcommand.
// It does not wait for the machine: Client.Domain tells.
func Start(dir Dir, spec Spec, pod netns) error {
	if err := dir.write(spec); err != nil {
		return fmt.Errorf("start the launcher: %w", err)
	}
	logFile, err := os.OpenFile(dir.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start the launcher: %w", err)
	}
	defer func() { _ = logFile.Close() }() // the child has its own
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the launcher: %w", err)
	}
	cmd := exec.Command(program, Subcommand, string(dir))
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:       true, // a signal to virt-handler's group is not for the guest
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
	}
	if err := pod.Do(cmd.Start); err != nil {
		return fmt.Errorf("start the launcher: %w", err)
	}
	go func() { _ = cmd.Wait() }() // its end shows on its socket; this only avoids a zombie
	return nil
}

// Client gives orders to a launcher.
type Client struct {
	http http.Client
}

// redialEvery and redialFor: a launcher listens a moment after its start.
const (
	redialEvery = 20 * time.Millisecond
	redialFor   = 10 * time.Second
)

// Connect returns the client of the launcher of a folder; the launcher need not be there yet.
func Connect(dir Dir) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, dir.orders()) },
	}}}
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, redialFor)
	defer cancel()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		// A launcher that was, and is no more, refuses at once.
		if err == nil || errors.Is(err, unix.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(redialEvery):
		}
	}
}

// Domain waits for a state after the known revision; zero gets the present one. An error other than ctx's means that
// the launcher is gone, and its machine with it.
func (c *Client) Domain(ctx context.Context, after int) (Snapshot, error) {
	var now Snapshot
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://launcher/domain?after=%d", after), nil)
	if err != nil {
		return now, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return now, err
	}
	defer func() { _ = answer.Body.Close() }()
	return now, json.NewDecoder(answer.Body).Decode(&now)
}

// Shutdown presses the guest's power button, and notes the time at the first call.
func (c *Client) Shutdown(ctx context.Context, graceSeconds int64) error {
	return c.order(ctx, "shutdown", shutdownOrder{graceSeconds})
}

// Destroy ends the machine at once.
func (c *Client) Destroy(ctx context.Context) error { return c.order(ctx, "destroy", struct{}{}) }

// Migrate starts to copy the machine to another launcher; repeating it with the same UID does nothing.
func (c *Client) Migrate(ctx context.Context, uid types.UID, to MigrationTarget) error {
	return c.order(ctx, "migrate", migrateOrder{uid, to})
}

// CancelMigration gives up a running migration.
func (c *Client) CancelMigration(ctx context.Context) error {
	return c.order(ctx, "cancel", struct{}{})
}

// Exit ends the launcher, and its machine if it has one.
func (c *Client) Exit(ctx context.Context) error { return c.order(ctx, "exit", struct{}{}) }

func (c *Client) order(ctx context.Context, name string, argument any) error {
	body, err := json.Marshal(argument)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://launcher/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("launcher: %s: %w", name, err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return fmt.Errorf("launcher: %s: %w", name, err)
	}
	return nil
}
