package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"floatip.io/floatip/ipam"
	"floatip.io/floatip/webhook/admin"
	"floatip.io/floatip/webhook/controller"
)

const ledgerUsage = `Ask the ledger of the floatip-webhook that runs in this container, or a copied file with --file.

  floatip-webhook ledger check                     does the ledger hold together, and agree with the cluster?
  floatip-webhook ledger list                      all addresses that are held, or rest after their release
  floatip-webhook ledger history ADDRESS           who had it, from when to when, by whose request
  floatip-webhook ledger history --vm NS/NAME      what a VM had
  floatip-webhook ledger history --namespace NS    what the VMs of a namespace had
  floatip-webhook ledger disputes                  addresses on which ledger and cluster disagree
  floatip-webhook ledger resolve ADDRESS --keep UID   decide a dispute
  floatip-webhook ledger release ADDRESS           give back what a VM held that is gone
  floatip-webhook ledger backup > ledger.db        a copy of the file, while the webhook works

Flags:
`

// ledgerBook answers the commands: the running webhook, or a copied file.
type ledgerBook interface {
	Check(ctx context.Context) (admin.Report, error)
	History(ctx context.Context, q ipam.Query) (admin.Events, error)
	List(ctx context.Context, after netip.Addr, limit int) (admin.Lines, error)
	Disputes(ctx context.Context) (admin.Disputes, error)
	Resolve(ctx context.Context, address netip.Addr, keep, reason string) (admin.Line, error)
	Release(ctx context.Context, address netip.Addr, stoppedOn, reason string) (admin.Lines, error)
	Backup(ctx context.Context, w io.Writer) error
}

// ledgerFlags are what the commands take; each uses some.
type ledgerFlags struct {
	socket, file, vms, output   string
	vm, namespace, since, until string
	keep, reason, after         string
	stoppedOn                   string
	limit                       int
}

func (f *ledgerFlags) register(flags *flag.FlagSet) {
	flags.StringVar(&f.socket, "socket", defaults().ledgerSocket,
		"socket of the running floatip-webhook, as its --ledger-socket says.")
	flags.StringVar(&f.file, "file", "", "read this copied file and not the running floatip-webhook's. It is not changed.")
	flags.StringVar(&f.vms, "vms", "", "check: with --file, compare with this list of the cluster, as written by "+
		"\"kubectl get vm,floatingips,floatingippools -A -o json\"; - for standard input. "+
		"Without --file the cluster itself is compared.")
	flags.StringVar(&f.output, "o", "text", "how to answer: text for people, json for programs.")
	flags.StringVar(&f.vm, "vm", "", "history: of the VM with this namespace/name.")
	flags.StringVar(&f.namespace, "namespace", "", "history: of the VMs of this namespace.")
	flags.StringVar(&f.since, "since", "", "history: from this time on, 2026-01-02T15:04:05Z or 2026-01-02, or this long ago, 24h or 7d.")
	flags.StringVar(&f.until, "until", "", "history: before this time, or before this long ago.")
	flags.StringVar(&f.keep, "keep", "", "resolve: UID of the VM that shall have the address; the others lose it.")
	flags.StringVar(&f.stoppedOn, "stopped-on", "", "release: node that cannot say itself that it stopped to answer for the "+
		"address, and does not: you have looked.")
	flags.StringVar(&f.reason, "reason", "", "resolve, release: why, in some words, for the history.")
	flags.StringVar(&f.after, "after", "", "list: go on after this address.")
	flags.IntVar(&f.limit, "limit", 0,
		"list, history: how much to answer; 0 for as much as one answer may have, 5000 lines or 10000 events.")
}

// errUsage is a command line that makes no sense.
var errUsage = errors.New("usage")

// runLedger runs "floatip-webhook ledger args". It returns the exit code: 1 for an error or a check that found
// something, 2 for a command line that makes no sense.
func runLedger(args []string, in io.Reader, out, complaints io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var f ledgerFlags
	flags := flag.NewFlagSet("floatip-webhook ledger", flag.ContinueOnError)
	flags.SetOutput(complaints)
	flags.Usage = func() {
		fmt.Fprint(complaints, ledgerUsage)
		flags.PrintDefaults()
	}
	f.register(flags)
	words, err := parseMixed(flags, args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = f.run(ctx, flags, words, in, out)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(complaints, "floatip-webhook ledger: %v; -h tells more\n", err)
		return 2
	}
	fmt.Fprintf(complaints, "floatip-webhook ledger: %v\n", err)
	return 1
}

// parseMixed reads flags before, between and after the words: package flag stops at the first word.
func parseMixed(flags *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := flags.Parse(args); err != nil {
			return nil, errors.Join(errUsage, err)
		}
		if flags.NArg() == 0 {
			return words, nil
		}
		words, args = append(words, flags.Arg(0)), flags.Args()[1:]
	}
}

func (f *ledgerFlags) run(ctx context.Context, flags *flag.FlagSet, words []string, in io.Reader, out io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("%w: -o %s: there are text and json", errUsage, f.output)
	}
	if len(words) == 0 {
		return fmt.Errorf("%w: name a command: check, list, history, disputes, resolve, release or backup", errUsage)
	}
	command, known := ledgerCommands[words[0]]
	if !known {
		return fmt.Errorf("%w: there is no command %q", errUsage, words[0])
	}
	address, err := addressOf(command.address, words)
	if err != nil {
		return err
	}
	if err := command.admits(words[0], flags); err != nil {
		return err
	}
	if f.vms != "" && f.file == "" {
		return fmt.Errorf("%w: --vms goes with --file; without it the cluster itself is compared", errUsage)
	}
	book, end, err := f.open(in)
	if err != nil {
		return err
	}
	return errors.Join(command.run(ctx, f, book, address, out), end())
}

// How a command takes an address.
type takesAddress int

const (
	noAddress takesAddress = iota
	mayAddress
	mustAddress
)

func addressOf(takes takesAddress, words []string) (netip.Addr, error) {
	switch given := len(words) - 1; {
	case given > 1, given == 1 && takes == noAddress:
		return netip.Addr{}, fmt.Errorf("%w: %q is too much for %s", errUsage, words[len(words)-1], words[0])
	case given == 0 && takes == mustAddress:
		return netip.Addr{}, fmt.Errorf("%w: %s needs an address", errUsage, words[0])
	case given == 0:
		return netip.Addr{}, nil
	}
	a, err := ipam.ParseAddress(words[1])
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w: %w", errUsage, err)
	}
	return a, nil
}

// open returns who answers, and what to do in the end.
func (f *ledgerFlags) open(in io.Reader) (ledgerBook, func() error, error) {
	if f.file == "" {
		return admin.NewClient(f.socket), func() error { return nil }, nil
	}
	file, err := admin.OpenFile(f.file)
	if err != nil {
		return nil, nil, err
	}
	if f.vms == "" {
		return file, file.Close, nil
	}
	if f.vms != "-" {
		opened, err := os.Open(f.vms)
		if err != nil {
			return nil, nil, errors.Join(err, file.Close())
		}
		defer opened.Close()
		in = opened
	}
	if file.Against, err = controller.ReadList(in, file.Ledger); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("--vms %s: %w", f.vms, err), file.Close())
	}
	return file, file.Close, nil
}

// tell writes an answer, or returns err.
func (f *ledgerFlags) tell(out io.Writer, answer interface{ Text(io.Writer) error }, err error) error {
	if err != nil {
		return err
	}
	if f.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(answer)
	}
	return answer.Text(out)
}

// query is what history asks for.
func (f *ledgerFlags) query(address netip.Addr, now time.Time) (q ipam.Query, err error) {
	q = ipam.Query{Address: address, Namespace: f.namespace, Limit: f.limit}
	if f.vm != "" {
		namespace, name, ok := strings.Cut(f.vm, "/")
		if !ok || namespace == "" || name == "" || f.namespace != "" {
			return q, fmt.Errorf("%w: write --vm NAMESPACE/NAME, without --namespace", errUsage)
		}
		q.Namespace, q.Name = namespace, name
	}
	if q.From, err = moment(f.since, now); err != nil {
		return q, fmt.Errorf("%w: --since: %w", errUsage, err)
	}
	if q.Until, err = moment(f.until, now); err != nil {
		return q, fmt.Errorf("%w: --until: %w", errUsage, err)
	}
	if !q.Until.IsZero() && !q.From.Before(q.Until) {
		return q, fmt.Errorf("%w: --until %s is not after --since %s", errUsage, f.until, f.since)
	}
	return q, nil
}

// moment reads a time, a day in UTC, or how long ago it was; nothing is the zero time.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is neither a time like 2026-01-02T15:04:05Z or 2026-01-02 nor how long ago it was, like 24h or 7d", text)
}
