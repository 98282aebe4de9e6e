//! Changes to a text by the ranges of what is changed: attributes, elements, what is between two tags.
//! Knows XML, and nothing of domains.

use std::ops::Range;
use std::path::Path;

use roxmltree::{Attribute, Node};

use super::RewriteError;

/// Changes to one text. They may come in any order, but never overlap.
#[derive(Debug)]
pub(super) struct Edits<'i> {
    xml: &'i str,
    changes: Vec<(Range<usize>, String)>,
}

impl<'i> Edits<'i> {
    pub(super) fn new(xml: &'i str) -> Edits<'i> {
        Edits { xml, changes: Vec::new() }
    }

    /// The attribute gets this value; it stays as it is where it has it already.
    pub(super) fn set_attribute(&mut self, node: Node<'_, '_>, name: &'static str, value: &str) -> Done {
        let escaped = escape_attribute(name, value)?;
        match attribute(node, name) {
            Some(found) if found.value() == value => {}
            Some(found) => self.put(found.range_value(), escaped),
            None => {
                let at = self.name_end(node);
                self.put(at..at, format!(" {name}='{escaped}'"));
            }
        }
        Ok(())
    }

    /// Also removes the white space before it.
    pub(super) fn remove_attribute(&mut self, node: Node<'_, '_>, name: &'static str) {
        if let Some(found) = attribute(node, name) {
            let range = found.range();
            let before = self.xml[..range.start].trim_end_matches(is_space).len();
            self.put(before..range.end, String::new());
        }
    }

    /// The element has this text, and nothing else in it. Stays as it is where it says so already.
    pub(super) fn set_text(&mut self, node: Node<'_, '_>, what: &'static str, text: &str) -> Done {
        if text_of(node) == text && node.children().all(|child| child.is_text()) {
            return Ok(());
        }
        let escaped = escape_text(what, text)?;
        match self.content(node) {
            Some(content) => self.put(content, escaped),
            None => {
                let name = self.name(node).to_owned();
                let end = node.range().end;
                let tag_end = self.xml[..end - "/>".len()].trim_end_matches(is_space).len();
                self.put(tag_end..end, format!(">{escaped}</{name}>"));
            }
        }
        Ok(())
    }

    /// Nothing is left between its tags.
    pub(super) fn empty(&mut self, node: Node<'_, '_>) {
        if let Some(content) = self.content(node).filter(|content| !content.is_empty()) {
            self.put(content, String::new());
        }
    }

    pub(super) fn replace(&mut self, node: Node<'_, '_>, xml: String) {
        self.put(node.range(), xml);
    }

    /// With the line that it leaves behind.
    pub(super) fn remove(&mut self, node: Node<'_, '_>) {
        let range = node.range();
        let before = &self.xml[..range.start];
        let indented = before.trim_end_matches([' ', '\t']);
        let start = match indented.ends_with('\n') {
            true => indented.strip_suffix("\r\n").or(indented.strip_suffix('\n')).map_or(0, str::len),
            false => range.start,
        };
        self.put(start..range.end, String::new());
    }

    /// A new element beside an old one, indented as that is.
    pub(super) fn insert_before(&mut self, node: Node<'_, '_>, xml: String) {
        let at = node.range().start;
        let indent = self.indent(node);
        self.put(at..at, format!("{xml}{indent}"));
    }

    pub(super) fn insert_after(&mut self, node: Node<'_, '_>, xml: String) {
        let at = node.range().end;
        let indent = self.indent(node);
        self.put(at..at, format!("{indent}{xml}"));
    }

    /// A new element as the first in another. Stands right behind the start tag, where nothing else is changed.
    pub(super) fn insert_first(&mut self, node: Node<'_, '_>, xml: String) {
        let indent = node.children().find(Node::is_element).map_or("", |first| self.indent(first));
        match self.content(node) {
            Some(content) => self.put(content.start..content.start, format!("{indent}{xml}")),
            None => {
                let (name, end) = (self.name(node).to_owned(), node.range().end);
                self.put(end - "/>".len()..end, format!(">{xml}</{name}>"));
            }
        }
    }

    pub(super) fn apply(mut self) -> String {
        // Stable: what is inserted at one place stays in the order in which it came.
        self.changes.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = String::with_capacity(self.xml.len() + 256);
        let mut at = 0;
        for (range, text) in &self.changes {
            assert!(at <= range.start, "two changes overlap");
            out.push_str(&self.xml[at..range.start]);
            out.push_str(text);
            at = range.end;
        }
        out.push_str(&self.xml[at..]);
        out
    }

    fn put(&mut self, range: Range<usize>, text: String) {
        self.changes.push((range, text));
    }

    /// The line break and the white space that stand before an element.
    fn indent(&self, node: Node<'_, '_>) -> &'i str {
        let before = &self.xml[..node.range().start];
        let indented = before.trim_end_matches([' ', '\t']);
        match indented.ends_with('\n') {
            true => &before[indented.trim_end_matches(['\r', '\n']).len().max(indented.len() - 1)..],
            false => "",
        }
    }

    /// As it is written, with its prefix.
    fn name(&self, node: Node<'_, '_>) -> &'i str {
        &self.xml[node.range().start + 1..self.name_end(node)]
    }

    fn name_end(&self, node: Node<'_, '_>) -> usize {
        let start = node.range().start + 1;
        let length = self.xml[start..].find(|c| is_space(c) || c == '/' || c == '>');
        start + length.expect("an element that was parsed has an end")
    }

    /// What is between the tags. None: `<element/>`.
    fn content(&self, node: Node<'_, '_>) -> Option<Range<usize>> {
        let range = node.range();
        // Behind the last attribute there is only white space before the end of the tag.
        let last = node.attributes().map(|attribute| attribute.range().end).max();
        // Declarations of namespaces are no attributes, so quoted text may still follow.
        let mut at = last.unwrap_or(0).max(self.name_end(node));
        let bytes = self.xml.as_bytes();
        let mut quote = None;
        while at < range.end {
            match (quote, bytes[at]) {
                (None, b'>') => break,
                (None, byte @ (b'\'' | b'"')) => quote = Some(byte),
                (Some(open), byte) if open == byte => quote = None,
                _ => {}
            }
            at += 1;
        }
        if bytes[at - 1] == b'/' {
            return None;
        }
        let end = self.xml[..range.end].rfind("</").expect("an element with a content has an end tag");
        Some(at + 1..end)
    }
}

pub(super) type Done = Result<(), RewriteError>;

/// libvirt's own elements are in no namespace.
pub(super) fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

pub(super) fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| is(*child, name))
}

/// The only child of that name, if there is one.
pub(super) fn child<'a, 'i>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> Result<Option<Node<'a, 'i>>, RewriteError> {
    let mut found = children(node, name);
    let (first, second) = (found.next(), found.next());
    let parent = || node.tag_name().name().to_owned();
    if second.is_some() { Err(RewriteError::Twice { parent: parent(), child: name }) } else { Ok(first) }
}

/// The first of that name in whatever namespace: so libvirt finds its attributes (xmlGetProp), and so does `Node`.
fn attribute<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Attribute<'a, 'i>> {
    node.attribute_node(name)
}

/// All the text in an element: a comment or CDATA splits it into several nodes, and libvirt joins them.
pub(super) fn text_of(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// A path for an attribute or a text. libvirt has no way to say one that is not UTF-8.
pub(super) fn path_text(path: &Path) -> Result<&str, RewriteError> {
    let lossy = || RewriteError::Unwritable { what: "the path", value: path.to_string_lossy().into_owned() };
    path.to_str().ok_or_else(lossy)
}

/// Safe within either kind of quotes, and kept as it is by a parser that normalises white space.
pub(super) fn escape_attribute(what: &'static str, value: &str) -> Result<String, RewriteError> {
    escape(what, value, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\'' => Some("&apos;"),
        '"' => Some("&quot;"),
        '\t' => Some("&#9;"),
        '\n' => Some("&#10;"),
        '\r' => Some("&#13;"),
        _ => None,
    })
}

fn escape_text(what: &'static str, value: &str) -> Result<String, RewriteError> {
    escape(what, value, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\r' => Some("&#13;"),
        _ => None,
    })
}

fn escape(
    what: &'static str,
    value: &str,
    entity: impl Fn(char) -> Option<&'static str>,
) -> Result<String, RewriteError> {
    let mut out = String::with_capacity(value.len() + 16);
    for c in value.chars() {
        // The other control characters, and these two, have no place in XML 1.0 in whatever spelling.
        if (c < ' ' && !"\t\n\r".contains(c)) || c == '\u{fffe}' || c == '\u{ffff}' {
            return Err(RewriteError::Unwritable { what, value: value.to_owned() });
        }
        match entity(c) {
            Some(entity) => out.push_str(entity),
            None => out.push(c),
        }
    }
    Ok(out)
}

/// XML's own white space.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}
