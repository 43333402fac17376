package ipam

import "strings"

// names gives a number to each text that records use, and forgets it after its last use.
// Number 0 is the empty text.
type names struct {
	numbers map[string]uint32
	texts   []string
	uses    []int
	free    []uint32
}

func newNames() names {
	return names{numbers: map[string]uint32{}, texts: []string{""}, uses: []int{0}}
}

// find returns the number of text if somebody uses it.
func (n *names) find(text string) (uint32, bool) {
	if text == "" {
		return 0, true
	}
	number, ok := n.numbers[text]
	return number, ok
}

func (n *names) use(text string) uint32 {
	if text == "" {
		return 0
	}
	if number, ok := n.numbers[text]; ok {
		n.uses[number]++
		return number
	}
	text = strings.Clone(text) // of a request, which is larger
	var number uint32
	if last := len(n.free) - 1; last >= 0 {
		number, n.free = n.free[last], n.free[:last]
	} else {
		number = uint32(len(n.texts))
		n.texts, n.uses = append(n.texts, ""), append(n.uses, 0)
	}
	n.texts[number], n.uses[number], n.numbers[text] = text, 1, number
	return number
}

func (n *names) drop(number uint32) {
	if number == 0 {
		return
	}
	if n.uses[number]--; n.uses[number] == 0 {
		delete(n.numbers, n.texts[number])
		n.texts[number] = ""
		n.free = append(n.free, number)
	}
}

func (n *names) text(number uint32) string { return n.texts[number] }
