package cloudinit

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mergeConfig adds the file to a #cloud-config: in its text if that can be proved to change nothing else, otherwise as
// the second part of a message.
func mergeConfig(userData []byte, file File) ([]byte, Reason) {
	documents, err := parse(userData)
	if err != nil {
		return nil, ReasonBadYAML
	}
	root := rootOf(documents)
	if root != nil && root.Kind != yaml.MappingNode {
		return nil, ReasonNoMapping
	}
	list := lookup(root, writeFiles)
	if list != nil && list.Kind != yaml.SequenceNode && list.Kind != yaml.AliasNode {
		return nil, ReasonNoList
	}
	if len(documents) <= 1 && extensible(root, list) {
		for _, merged := range extensions(userData, root, list, file) {
			if provesEntry(root, merged, file) {
				return merged, ReasonNone
			}
		}
	}
	return wrap(userData, string(formatConfig), file)
}

// parse returns the documents of a YAML text as nodes: aliases are not followed, and a key may come twice.
func parse(text []byte) ([]*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var documents []*yaml.Node
	for {
		document := &yaml.Node{}
		err := decoder.Decode(document)
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, err
		}
		documents = append(documents, document)
	}
}

// rootOf returns the root of the first document, or nil if there is nothing but comments.
func rootOf(documents []*yaml.Node) *yaml.Node {
	if len(documents) == 0 || len(documents[0].Content) == 0 {
		return nil
	}
	root := documents[0].Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" && root.Value == "" {
		return nil
	}
	return root
}

// lookup returns the value of a key, the last one as cloud-init's parser has it, or nil.
func lookup(mapping *yaml.Node, key string) *yaml.Node {
	var value *yaml.Node
	for k, v := range pairs(mapping) {
		if k.Kind == yaml.ScalarNode && k.Value == key {
			value = v
		}
	}
	return value
}

// extensible reports whether an entry may be written into the text. A merge key may bring a write_files of its own, of
// a key that comes twice only the last counts, and a list with an anchor may be meant elsewhere too.
func extensible(root, list *yaml.Node) bool {
	if root == nil {
		return true
	}
	seen := map[string]bool{}
	for k := range pairs(root) {
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" || seen[k.Value] {
			return false
		}
		seen[k.Value] = true
	}
	if root.Style&yaml.FlowStyle != 0 {
		return false
	}
	return list == nil || list.Kind == yaml.SequenceNode && list.Style&yaml.FlowStyle == 0 && list.Anchor == ""
}

// extensions returns the texts that may be userData with the entry, best first.
func extensions(userData []byte, root, list *yaml.Node, file File) [][]byte {
	if list == nil {
		indent := ""
		if root != nil {
			indent = spaces(root.Column - 1)
		}
		return [][]byte{insert(userData, len(userData), indent+writeFiles+":\n"+file.entry(indent))}
	}
	entry := file.entry(spaces(list.Column - 1))
	end := endOf(userData, root, list)
	// Comments and blank lines before the next key belong to that key, unless they are in a scalar: then the first text
	// is not what was meant, and the second one is.
	return [][]byte{
		insert(userData, trimComments(userData, end), entry),
		insert(userData, end, entry),
	}
}

// endOf returns the offset of the line in which the next key of the root begins after list, or the text's length.
func endOf(text []byte, root, list *yaml.Node) int {
	next := 0
	for k := range pairs(root) {
		if k.Line > list.Line && (next == 0 || k.Line < next) {
			next = k.Line
		}
	}
	if next == 0 {
		return len(text)
	}
	return lineOffset(text, next)
}

// lineOffset returns where a line begins, counted from one.
func lineOffset(text []byte, line int) int {
	offset := 0
	for ; line > 1; line-- {
		i := bytes.IndexByte(text[offset:], '\n')
		if i < 0 {
			return len(text)
		}
		offset += i + 1
	}
	return offset
}

// trimComments returns the end of the last line before end that is neither blank nor a comment.
func trimComments(text []byte, end int) int {
	for end > 0 {
		start := bytes.LastIndexByte(text[:end-1], '\n') + 1
		line := bytes.TrimSpace(text[start:end])
		if len(line) > 0 && line[0] != '#' {
			return end
		}
		end = start
	}
	return 0
}

// insert returns text with addition at offset, on lines of its own.
func insert(text []byte, offset int, addition string) []byte {
	var b bytes.Buffer
	b.Write(text[:offset])
	if offset > 0 && text[offset-1] != '\n' {
		b.WriteByte('\n')
	}
	b.WriteString(addition)
	b.Write(text[offset:])
	return b.Bytes()
}

func spaces(n int) string { return strings.Repeat(" ", max(n, 0)) }
