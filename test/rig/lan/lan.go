package lan

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// LAN is a network that Start made.
type LAN struct {
	// Prefix starts the name of every namespace of this LAN, so that several can live on one machine.
	Prefix string `json:"prefix"`
	// Dir holds the state of the LAN: what Open and Close need to know, and which pod has which address.
	Dir   string `json:"dir"`
	Nodes []Node `json:"nodes"`
	// Gateway routes between the provider network, the network behind it and the green network. Its address is the one
	// on the provider network.
	Gateway Host `json:"gateway"`
	// ProviderHost is a machine on the provider network that is no part of the cluster.
	ProviderHost Host `json:"providerHost"`
	// OutsideHost is a machine beyond the gateway.
	OutsideHost Host `json:"outsideHost"`
}

const stateFile = "lan.json"

// Start makes a LAN with that many nodes and keeps its state in dir. After a failure nothing is left of it.
func Start(dir string, nodes int) (_ *LAN, err error) {
	if nodes < 1 || nodes > MaxNodes {
		return nil, fmt.Errorf("make a LAN with %d nodes: want 1 to %d", nodes, MaxNodes)
	}
	var unique [3]byte
	rand.Read(unique[:]) // never fails, crypto/rand
	l := &LAN{Prefix: "fip" + hex.EncodeToString(unique[:]), Dir: dir}
	l.Gateway = Host{l.namespace("gateway"), at(Provider, 1), at(Provider6, 1)}
	l.ProviderHost = Host{l.namespace("provider"), at(Provider, 200), at(Provider6, 0x200)}
	l.OutsideHost = Host{l.namespace("outside"), at(Outside, 10), at(Outside6, 0x10)}
	for i := range nodes {
		l.Nodes = append(l.Nodes, l.node(i+1))
	}
	// The state is on disk before the first namespace is, so that a crash leaves nothing that Close cannot find.
	if err := l.save(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	return l, l.build()
}

// Remove removes the LAN that Start made with this dir, in this process or another. It is fine if there is none.
func Remove(dir string) error {
	l, err := Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.Close()
}

// Open returns the LAN that Start made with this dir, in this process or another. The error is fs.ErrNotExist if there
// is none.
func Open(dir string) (*LAN, error) {
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	l := &LAN{}
	if err := json.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("state of the LAN in %s: %w", dir, err)
	}
	return l, nil
}

// Close removes every namespace of the LAN, those of pods too, and its state. What runs in them must have ended: a
// namespace lives on, without a name, as long as a process is in it.
func (l *LAN) Close() error {
	namespaces, err := filepath.Glob(l.namespace("*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range namespaces {
		errs = append(errs, removeNamespace(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove LAN %s: %w", l.Prefix, err)
	}
	return errors.Join(os.RemoveAll(filepath.Join(l.Dir, podsDir)), os.RemoveAll(filepath.Join(l.Dir, stateFile)))
}

// Processes returns the processes in the namespaces of the LAN and its pods, but for the caller's own.
func (l *LAN) Processes() ([]int, error) {
	namespaces, err := filepath.Glob(l.namespace("*"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range namespaces {
		out, err := run(exec.Command("ip", "netns", "pids", filepath.Base(path)), "")
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(out) {
			// Threads of this program may be inside; the first one counts for the whole.
			if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// Node returns the node of that name.
func (l *LAN) Node(name string) (Node, error) {
	for _, n := range l.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("LAN %s has no node %q", l.Prefix, name)
}

func (l *LAN) namespace(name string) string {
	return filepath.Join(namespaceDir, l.Prefix+"-"+name)
}

func (l *LAN) save() error {
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, stateFile), raw, 0o644)
}
