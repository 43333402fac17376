// Inspect is the program in the test's images. It says what it finds around itself, then waits for SIGTERM and notes in
// a file, if given one, that it got it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

type report struct {
	Args       []string
	Env        map[string]string
	UID, GID   int
	Groups     []int
	Status     map[string]string // of /proc/self/status
	Files      map[string]string // the contents of the files named by --read
	Hostname   string
	Interfaces []string
	RootError  string
	Unshare    string
}

func main() {
	read := flag.String("read", "", "comma-separated files to report")
	note := flag.String("note", "", "file to append --name to on SIGTERM")
	name := flag.String("name", "", "what to note")
	exit := flag.Int("exit", -1, "end at once with this code")
	flag.Parse()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	if err := json.NewEncoder(os.Stdout).Encode(inspect(strings.Split(*read, ","))); err != nil {
		os.Exit(9)
	}
	if *exit >= 0 {
		os.WriteFile("/dev/termination-log", []byte("asked to"), 0o644)
		os.Exit(*exit)
	}
	<-signals
	if *note != "" {
		f, err := os.OpenFile(*note, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			os.Exit(8)
		}
		fmt.Fprintln(f, *name)
		f.Close()
	}
}

func inspect(files []string) report {
	r := report{
		Args: os.Args, UID: os.Getuid(), GID: os.Getgid(),
		Env: map[string]string{}, Status: map[string]string{}, Files: map[string]string{},
	}
	r.Groups, _ = os.Getgroups()
	for _, assignment := range os.Environ() {
		key, value, _ := strings.Cut(assignment, "=")
		r.Env[key] = value
	}
	raw, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		r.Status[key] = strings.TrimSpace(value)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			text = []byte(err.Error())
		}
		r.Files[path] = string(text)
	}
	r.Hostname, _ = os.Hostname()
	links, _ := net.Interfaces()
	for _, link := range links {
		r.Interfaces = append(r.Interfaces, link.Name)
	}
	if err := os.WriteFile("/written", nil, 0o644); err != nil {
		r.RootError = err.Error()
	}
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		r.Unshare = err.Error()
	}
	return r
}
