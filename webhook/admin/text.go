package admin

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// Text writes the lines as a table.
func (l Lines) Text(w io.Writer) error {
	t := newTable(w, "ADDRESS", "POOL", "NAMESPACE", "VM", "STATE", "SINCE", "NOTE", "UID")
	for _, line := range l.Lines {
		t.row(line.Address, line.Pool, line.VM.Namespace, line.VM.Name, line.State, at(line.Since), note(line), line.VM.UID)
	}
	return t.end(l.More, "there are more: go on with --after ADDRESS, the last one above")
}

// Text writes the line as a table.
func (l Line) Text(w io.Writer) error { return Lines{Lines: []Line{l}}.Text(w) }

func note(l Line) string {
	var notes []string
	if l.Disputed {
		notes = append(notes, "disputed")
	}
	if l.Missing {
		notes = append(notes, "VM not seen")
	}
	if l.Superseded {
		notes = append(notes, "VM has another")
	}
	return strings.Join(notes, ", ")
}

// Text writes the events as a table, oldest first.
func (e Events) Text(w io.Writer) error {
	t := newTable(w, "TIME", "ADDRESS", "POOL", "VM", "WHAT", "USER", "REQUEST", "REASON", "UID")
	for _, event := range e.Events {
		t.row(at(event.Time), event.Address, event.Pool, event.VM, event.Action, event.User, event.RequestUID,
			event.Reason, event.VM.UID)
	}
	return t.end(e.More, "there are older ones: narrow the question with --since and --until, or raise --limit")
}

// Text writes one line for each party of each dispute, the holder first.
func (d Disputes) Text(w io.Writer) error {
	if len(d.Disputes) == 0 {
		_, err := fmt.Fprintln(w, "no address is disputed")
		return err
	}
	t := newTable(w, "ADDRESS", "VM", "PART", "SINCE", "SEEN IN", "UID")
	for _, dispute := range d.Disputes {
		holder := dispute.Holder
		t.row(holder.Address, holder.VM, "holds it", at(holder.Since), "ledger", holder.VM.UID)
		for _, c := range dispute.Claimants {
			t.row(holder.Address, c.VM, "claims it", at(c.Since), c.Source, c.VM.UID)
		}
	}
	return t.end(d.More, "there are more: resolve these first; ledger resolve ADDRESS --keep UID decides")
}

// Text writes what does not fit, or that all is well.
func (r Report) Text(w io.Writer) error {
	for _, p := range r.Problems {
		text := p.Text
		if p.Address != "" {
			text = p.Address + ": " + text
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	verdict := "clean"
	if r.Count > 0 {
		verdict = fmt.Sprintf("%d problems, %d of them above", r.Count, len(r.Problems))
	}
	_, err := fmt.Fprintf(w, "%d held, %d released, %d events: %s\n", r.Held, r.Released, r.Events, verdict)
	return err
}

func at(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// table writes columns, as kubectl does.
type table struct {
	out io.Writer
	tab *tabwriter.Writer
}

func newTable(w io.Writer, columns ...any) table {
	t := table{w, tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
	t.row(columns...)
	return t
}

// row writes one line. A cell without text is a dash, so that programs can split the line.
func (t table) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		if texts[i] = printable(fmt.Sprint(c)); texts[i] == "" {
			texts[i] = "-"
		}
	}
	fmt.Fprintln(t.tab, strings.Join(texts, "\t"))
}

// printable shows what would move the cursor, or end the cell, as a question mark: names of users and reasons may be
// any text.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// end writes the table, and hint if there is more.
func (t table) end(more bool, hint string) error {
	if err := t.tab.Flush(); err != nil || !more {
		return err
	}
	_, err := fmt.Fprintln(t.out, hint)
	return err
}
