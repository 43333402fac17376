package main

import (
	"errors"
	"flag"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// copyFile is `cp --preserve=all FROM TO`, by which an init container hands the container disk's program to the others
// (KubeVirt pkg/virt-controller/services/template.go).
func copyFile(args []string) error {
	if len(args) > 0 && args[0] == "--preserve=all" {
		args = args[1:]
	}
	if len(args) != 2 {
		return errors.New("want two files")
	}
	from, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(args[1], os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// containerDisk listens on a socket beside the disk until virt-handler takes the socket away, or at once to be ended
// (KubeVirt cmd/container-disk-v2alpha/main.c).
func containerDisk(args []string) error {
	flags := flag.NewFlagSet("container-disk", flag.ContinueOnError)
	once := flags.Bool("no-op", false, "end at once with success")
	path := flags.String("copy-path", "", "the disk; its socket has .sock appended")
	if err := flags.Parse(args); err != nil || *once {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(*path), 0o777); err != nil {
		return err
	}
	socket := *path + ".sock"
	if err := listen(socket); err != nil {
		return err
	}
	signals := ended()
	for exists(socket) {
		select {
		case <-signals:
			return os.Remove(socket)
		case <-time.After(poll):
		}
	}
	return nil
}

// The folder of virt-launcher's emptyDir "sockets". The second file exists as long as the guest runs (test/rig/kubelet,
// GuestFile).
const (
	launcherSocket = "/var/run/kubevirt/sockets/launcher-sock"
	guestFile      = "/var/run/kubevirt/sockets/guest"
	shutdownFile   = guestFile + ".shutdown" // made at a signal (test/rig/kubelet, ShutdownFile)
)

// launcher is virt-launcher: it offers the socket by which virt-handler finds the pod's namespaces, and lives as long as
// its guest. A signal ends it when there is no guest; one that runs is first shut down by virt-handler.
func launcher([]string) error {
	if err := listen(launcherSocket); err != nil {
		return err
	}
	signals := ended()
	ran, told := false, false
	for {
		select {
		case <-signals:
			told = true
			if err := os.WriteFile(shutdownFile, nil, 0o644); err != nil {
				return err
			}
		case <-time.After(poll):
		}
		runs := exists(guestFile)
		if !runs && (ran || told) {
			return nil
		}
		ran = runs
	}
}

// listen accepts connections at path and closes them.
func listen(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // of an earlier run of this container
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
