package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"floatip.io/floatip/ipam"
)

// ledgerCommand is one of the commands: which flags it takes besides --socket and -o, and what it does.
type ledgerCommand struct {
	address takesAddress
	flags   []string
	run     func(ctx context.Context, f *ledgerFlags, b ledgerBook, a netip.Addr, out io.Writer) error
}

// ledgerCommands by name.
var ledgerCommands = map[string]ledgerCommand{
	"check":    {noAddress, []string{"file", "vms"}, checkLedger},
	"list":     {noAddress, []string{"file", "after", "limit"}, listLedger},
	"history":  {mayAddress, []string{"file", "vm", "namespace", "since", "until", "limit"}, showHistory},
	"disputes": {noAddress, []string{"file"}, showDisputes},
	"resolve":  {mustAddress, []string{"file", "keep", "reason"}, resolveDispute},
	"release":  {mustAddress, []string{"file", "stopped-on", "reason"}, releaseAddress},
	"backup":   {noAddress, []string{"file"}, backupLedger},
}

// admits returns an error if a flag was given that means nothing to the command: "list --namespace" would show all.
func (c ledgerCommand) admits(name string, flags *flag.FlagSet) error {
	var errs []error
	flags.Visit(func(f *flag.Flag) {
		if f.Name != "socket" && f.Name != "o" && !slices.Contains(c.flags, f.Name) {
			errs = append(errs, fmt.Errorf("%w: --%s does not go with %s", errUsage, f.Name, name))
		}
	})
	return errors.Join(errs...)
}

func checkLedger(ctx context.Context, f *ledgerFlags, b ledgerBook, _ netip.Addr, out io.Writer) error {
	report, err := b.Check(ctx)
	if err := f.tell(out, report, err); err != nil {
		return err
	}
	if report.Count > 0 {
		return fmt.Errorf("the check found %d problems; docs/ledger.md says what to do", report.Count)
	}
	return nil
}

func listLedger(ctx context.Context, f *ledgerFlags, b ledgerBook, _ netip.Addr, out io.Writer) error {
	var after netip.Addr
	if f.after != "" {
		var err error
		if after, err = ipam.ParseAddress(f.after); err != nil {
			return fmt.Errorf("%w: --after: %w", errUsage, err)
		}
	}
	lines, err := b.List(ctx, after, f.limit)
	return f.tell(out, lines, err)
}

func showHistory(ctx context.Context, f *ledgerFlags, b ledgerBook, a netip.Addr, out io.Writer) error {
	q, err := f.query(a, time.Now())
	if err != nil {
		return err
	}
	events, err := b.History(ctx, q)
	return f.tell(out, events, err)
}

func showDisputes(ctx context.Context, f *ledgerFlags, b ledgerBook, _ netip.Addr, out io.Writer) error {
	disputes, err := b.Disputes(ctx)
	return f.tell(out, disputes, err)
}

func resolveDispute(ctx context.Context, f *ledgerFlags, b ledgerBook, a netip.Addr, out io.Writer) error {
	if f.keep == "" {
		return fmt.Errorf("%w: resolve needs --keep with the UID of one of the VMs that \"ledger disputes\" lists", errUsage)
	}
	line, err := b.Resolve(ctx, a, f.keep, f.reason)
	return f.tell(out, line, err)
}

func releaseAddress(ctx context.Context, f *ledgerFlags, b ledgerBook, a netip.Addr, out io.Writer) error {
	lines, err := b.Release(ctx, a, f.stoppedOn, f.reason)
	return f.tell(out, lines, err)
}

func backupLedger(ctx context.Context, f *ledgerFlags, b ledgerBook, _ netip.Addr, out io.Writer) error {
	if file, ok := out.(*os.File); ok && isTerminal(file) {
		return fmt.Errorf("%w: backup writes the file to standard output: send it into a file, \"ledger backup > ledger.db\"", errUsage)
	}
	return b.Backup(ctx, out)
}

func isTerminal(file *os.File) bool {
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
