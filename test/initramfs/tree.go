package initramfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
)

// Tree is a file tree to be, keyed by path without a leading slash.
type Tree map[string]entry

// entry is a regular file, a folder or a symbolic link, as its mode says; content holds a link's target.
type entry struct {
	mode    fs.FileMode
	content []byte
}

// File adds a regular file and the folders above it.
func (t Tree) File(name string, mode fs.FileMode, content []byte) {
	t[name] = entry{mode.Perm(), content}
	t.Dir(path.Dir(name))
}

// Link adds a symbolic link and the folders above it.
func (t Tree) Link(name, target string) {
	t[name] = entry{fs.ModeSymlink | 0o777, []byte(target)}
	t.Dir(path.Dir(name))
}

// Dir adds a folder and its parents.
func (t Tree) Dir(name string) {
	for ; name != "."; name = path.Dir(name) {
		t[name] = entry{fs.ModeDir | 0o755, nil}
	}
}

// Bytes is the tree in the "new ASCII" cpio format, which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst). Parents sort before what they hold. The result depends
// on the tree alone: no times, no inode numbers of the building machine.
func (t Tree) Bytes() []byte {
	var out bytes.Buffer
	for i, name := range slices.Sorted(maps.Keys(t)) {
		writeEntry(&out, i+1, name, t[name])
	}
	writeEntry(&out, 0, "TRAILER!!!", entry{})
	return out.Bytes()
}

func writeEntry(out *bytes.Buffer, inode int, name string, e entry) {
	const links, uid, gid, mtime, major, minor, rmajor, rminor, check = 1, 0, 0, 0, 0, 0, 0, 0, 0
	fmt.Fprintf(out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, unixMode(e.mode), uid, gid,
		links, mtime, len(e.content), major, minor, rmajor, rminor, len(name)+1, check)
	out.WriteString(name)
	out.WriteByte(0)
	pad(out)
	out.Write(e.content)
	pad(out)
}

// pad fills up to the next multiple of four bytes: header and content are aligned so.
func pad(out *bytes.Buffer) {
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
}

// unixMode has the type bits of inode(7).
func unixMode(mode fs.FileMode) uint32 {
	const regular, folder, symlink = 0o100000, 0o040000, 0o120000
	switch {
	case mode.IsDir():
		return folder | uint32(mode.Perm())
	case mode&fs.ModeSymlink != 0:
		return symlink | uint32(mode.Perm())
	}
	return regular | uint32(mode.Perm())
}
