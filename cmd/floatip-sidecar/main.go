// Command floatip-sidecar keeps the NAT rules of a virtual machine's floating addresses in its virt-launcher pod.
//
//	floatip-sidecar [run]    keep the rules, until SIGTERM
//	floatip-sidecar ready    exit 0 once the rules stand or their state was reported: the startup probe
//	floatip-sidecar status   print the state and the counters
//	floatip-sidecar plan     print the nft text for a file, without touching the kernel
//
// It runs as uid 0 with NET_ADMIN as its only capability, on a read-only root, without a token of the API server. It
// ends at once on SIGTERM and leaves the rules in place: the guest may still be shutting down.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"floatip.io/floatip"
	"floatip.io/floatip/nat"
	"floatip.io/floatip/nat/handover"
	"floatip.io/floatip/nat/sidecar"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

const usage = `usage: floatip-sidecar [run | ready | status | plan] [flags]

  run     keep the NAT rules of this pod until SIGTERM (the default)
  ready   exit 0 once the rules stand or their state was reported
  status  print the state and the counters of the sidecar in this pod
  plan    print the nft text for a file, without touching the kernel

`

// collectAt keeps the heap small: the loop allocates some 100 KiB at each look, and a look is rare. See GOGC in package
// runtime.
const collectAt = 25

// askTimeout bounds ready and status.
const askTimeout = 5 * time.Second

type options struct {
	natFile, socket string
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	command := "run"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return exitUsage
	}
	switch command {
	case "run":
		err = keep(o, stderr)
	case "ready":
		_, _, err = ask(o)
	case "status":
		err = status(o, stdout)
	case "plan":
		err = plan(o, stdout)
	default:
		fmt.Fprintf(stderr, "floatip-sidecar: unknown command %q\n%s", command, usage)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintf(stderr, "floatip-sidecar: %v\n", err)
		return exitFailure
	}
	return exitOK
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("floatip-sidecar", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.natFile, "nat-file", sidecar.DefaultNATFile,
		"the addresses to translate, as the webhook writes them into the pod's annotation "+floatip.AnnotationNAT+
			"; while the file is absent or empty, nothing is translated")
	flags.StringVar(&o.socket, "socket", sidecar.DefaultSocket,
		"the unix socket for the node agent; if its directory is missing, the agent cannot plug the leg and no traffic flows")
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "floatip-sidecar: unexpected argument %q\n", flags.Arg(0))
		return o, errors.New("unexpected argument")
	}
	return o, nil
}

func keep(o options, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	log.Info("floatip-sidecar starts", "revision", floatip.Revision(), "nat-file", o.natFile, "socket", o.socket)
	return sidecar.Run(ctx, sidecar.Config{
		NATFile: o.natFile,
		Socket:  o.socket,
		Pod:     handover.Pod{Namespace: os.Getenv("POD_NAMESPACE"), Name: os.Getenv("POD_NAME"), UID: os.Getenv("POD_UID")},
		Log:     log,
		Started: save,
	})
}

// save sets the runtime to save memory. Not before the rules stand: stopping the world for each setting and collecting
// what the start leaves take a tenth of the time until then.
func save() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	runtime.GOMAXPROCS(1) // each processor of the runtime keeps memory of its own, and the work is one loop
}

func ask(o options) (handover.Pod, handover.State, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	return handover.Status(ctx, o.socket)
}

func plan(o options, stdout io.Writer) error {
	raw, err := os.ReadFile(o.natFile)
	if err != nil {
		return err
	}
	p, err := floatip.ParsePodNAT(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", o.natFile, err)
	}
	_, err = io.WriteString(stdout, nat.Text(p))
	return err
}

func status(o options, stdout io.Writer) error {
	pod, s, err := ask(o)
	if err != nil {
		return err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "phase:    %s since %s\n", s.Phase, s.Since.Format(time.RFC3339))
	if pod.Name != "" {
		fmt.Fprintf(&out, "pod:      %s/%s\n", pod.Namespace, pod.Name)
	}
	if s.Owner.Name != "" {
		fmt.Fprintf(&out, "vm:       %s\n", s.Owner)
	}
	if s.Problem != "" {
		fmt.Fprintf(&out, "problem:  %s\n", s.Problem)
	}
	fmt.Fprintf(&out, "repairs:  %d\n", s.Repairs)
	for _, b := range s.Bindings {
		fmt.Fprintf(&out, "binding:  %s = %s\n", b.Floating, b.Fixed)
	}
	for _, c := range s.Counters {
		fmt.Fprintf(&out, "traffic:  %s in %s, out %s, refused %s, guarded %s\n", c.Floating, figure(c.In), figure(c.Out),
			figure(c.Refused), figure(c.Guarded))
	}
	_, err = io.WriteString(stdout, out.String())
	return err
}

func figure(f handover.Figure) string {
	return fmt.Sprintf("%d packets %d bytes", f.Packets, f.Bytes)
}
