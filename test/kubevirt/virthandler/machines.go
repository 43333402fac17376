package virthandler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	v1 "kubevirt.io/api/core/v1"

	"floatip.io/floatip/test/kubevirt/virthandler/launcher"
	"kubevirt.io/kubevirt/pkg/virt-launcher/virtwrap/api"
)

// machine is a launcher of this node.
type machine struct {
	vmi    *v1.VirtualMachineInstance // as it was at the start
	dir    launcher.Dir
	client *launcher.Client
}

func (m *machine) key() string { return m.vmi.Namespace + "/" + m.vmi.Name }

// machines knows the launchers of the node and their latest states.
type machines struct {
	dir     string
	changed func(key string) // called when a state changes

	mu      sync.Mutex // guards the maps
	all     map[types.UID]*machine
	domains map[types.UID]*api.Domain // no entry until the launcher has told its state
}

func newMachines(dir string, changed func(key string)) *machines {
	return &machines{dir: dir, changed: changed, all: map[types.UID]*machine{}, domains: map[types.UID]*api.Domain{}}
}

// Dir is the folder of an instance's launcher below a node's run folder.
func Dir(runDir string, uid types.UID) launcher.Dir {
	return launcher.Dir(filepath.Join(runDir, string(uid)))
}

// restore finds the launchers that an earlier process of this node has started.
func (m *machines) restore(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(m.dir, "*", "launch.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		dir := launcher.Dir(filepath.Dir(file))
		spec, err := dir.Read()
		if err != nil {
			return fmt.Errorf("restore %s: %w", dir, err)
		}
		m.add(ctx, &machine{spec.VMI, dir, launcher.Connect(dir)})
	}
	return nil
}

// start makes a launcher in the pod's namespace.
func (m *machines) start(ctx context.Context, spec launcher.Spec, pod Namespace) error {
	dir := Dir(m.dir, spec.VMI.UID)
	if err := launcher.Start(dir, spec, pod); err != nil {
		return err
	}
	m.add(ctx, &machine{spec.VMI, dir, launcher.Connect(dir)})
	return nil
}

func (m *machines) add(ctx context.Context, added *machine) {
	m.mu.Lock()
	m.all[added.vmi.UID] = added
	m.mu.Unlock()
	go m.watch(ctx, added)
}

// watch keeps the state of a machine up to date until its launcher ends.
func (m *machines) watch(ctx context.Context, watched *machine) {
	for revision := 0; ; {
		now, err := watched.client.Domain(ctx, revision)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.lost(watched, err)
			return
		}
		revision = now.Revision
		m.mu.Lock()
		before := m.domains[watched.vmi.UID]
		m.domains[watched.vmi.UID] = now.Domain
		m.mu.Unlock()
		if status := now.Domain.Status; before == nil || before.Status.Status != status.Status || before.Status.Reason != status.Reason {
			log.Printf("%s: %s (%s)", watched.key(), status.Status, status.Reason)
		}
		m.changed(watched.key())
	}
}

// lost records that a launcher is gone: its machine is too.
func (m *machines) lost(gone *machine, err error) {
	m.mu.Lock()
	if m.all[gone.vmi.UID] == gone {
		domain := m.domains[gone.vmi.UID].DeepCopy()
		if domain == nil {
			domain = api.NewMinimalDomainWithNS(gone.vmi.Namespace, gone.vmi.Name)
		}
		if launcher.Alive(domain) || domain.Status.Status == "" {
			log.Printf("%s: launcher lost: %v", gone.key(), err)
			domain.Status = api.DomainStatus{Status: api.Crashed, Reason: api.ReasonCrashed}
		}
		m.domains[gone.vmi.UID] = domain
	}
	m.mu.Unlock()
	m.changed(gone.key())
}

// of returns the machines of a key: more than one while an instance is replaced by one of the same name.
func (m *machines) of(key string) []*machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []*machine
	for _, candidate := range m.all {
		if candidate.key() == key {
			found = append(found, candidate)
		}
	}
	return found
}

// get returns the machine of an instance and its state, both nil if there is none. Known is false while the launcher
// has not told its state yet.
func (m *machines) get(uid types.UID) (found *machine, domain *api.Domain, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found = m.all[uid]
	domain = m.domains[uid]
	return found, domain, found == nil || domain != nil
}

// remove ends the launcher and deletes its folder; the logs stay, in the folder "ended".
func (m *machines) remove(ctx context.Context, gone *machine) error {
	if err := gone.client.Exit(ctx); err != nil {
		log.Printf("%s: %v", gone.key(), err) // it has ended before
	}
	for snapshot, err := gone.client.Domain(ctx, 0); err == nil; {
		snapshot, err = gone.client.Domain(ctx, snapshot.Revision)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.all, gone.vmi.UID)
	delete(m.domains, gone.vmi.UID)
	m.mu.Unlock()
	return errors.Join(m.keepLogs(gone), os.RemoveAll(string(gone.dir)))
}

func (m *machines) keepLogs(gone *machine) error {
	ended := filepath.Join(m.dir, "ended")
	if err := os.MkdirAll(ended, 0o755); err != nil {
		return err
	}
	var problems []error
	for _, path := range []string{gone.dir.Log(), gone.dir.Console()} {
		name := fmt.Sprintf("%s-%s-%s", gone.vmi.Name, gone.vmi.UID, filepath.Base(path))
		if err := os.Rename(path, filepath.Join(ended, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}
