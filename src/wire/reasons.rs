//! Enums whose variants have a number on the wire and a text for people.

macro_rules! reasons {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $type { $($(#[$doc])* $name,)* }

        impl $type {
            /// Every one there is.
            pub const ALL: &'static [$type] = &[$($type::$name,)*];

            /// The number that stands in the message.
            pub const fn number(self) -> u8 {
                match self { $($type::$name => $number,)* }
            }

            /// The one with this number.
            pub const fn from_number(number: u8) -> Option<$type> {
                match number { $($number => Some($type::$name),)* _ => None }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($type::$name => $text,)* })
            }
        }
    };
}
